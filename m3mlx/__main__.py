"""python -m m3mlx"""

from .cli import main

if __name__ == "__main__":
    main(prog_name="m3mlx")
