from .assistant import Assistant as Assistant
from .chat.chat import Answer as Answer
from .chat.chat import Chat as Chat
from .chat.chat import Source as Source
from .config import Generation as Generation
from .config import MemoryConfig as MemoryConfig
from .config import Options as Options
from .errors import M3Error as M3Error
from .memorize.run import MemorizeReport as MemorizeReport
from .models.decoder import load_decoder as load_decoder
from .store import Filter as Filter
from .store import Hit as Hit
from .store import MemoryStore as MemoryStore
from .store import StoredDocument as StoredDocument

__version__: str
