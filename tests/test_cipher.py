"""The cipher: what is sealed is opened in its place and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3mlx.errors import StoreError
from m3mlx.store import cipher
from m3mlx.store.cipher import Cipher, LockedError, Tampered, new_key, unlock


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(cipher, "_COST", 16)


KEY = Cipher(bytes(range(32)))
ID = "00" * 16


@given(st.binary(), st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_sealed_is_opened(data, text):
    assert KEY.decrypt(KEY.encrypt(data, "text", 1), "text", 1) == data
    assert KEY.decrypt_record(KEY.encrypt_record(data, b"1"), b"1") == data
    assert KEY.decrypt(KEY.encrypt(text, 1, 2), 1, 2) == text
    assert KEY.decrypt_name(KEY.encrypt_name(text)) == text
    assert len(KEY.encrypt(data)) == len(data) + cipher.OVERHEAD


def test_the_same_twice_looks_different_except_for_names():
    assert KEY.encrypt(b"a") != KEY.encrypt(b"a")
    assert KEY.encrypt_record(b"a", b"") != KEY.encrypt_record(b"a", b"")
    assert KEY.encrypt("a") != KEY.encrypt("a")
    assert KEY.encrypt_name("a") == KEY.encrypt_name("a") != KEY.encrypt_name("b")


@pytest.mark.parametrize("identity", [(), ("text",), ("text", 2), ("text", "1"), (1, "text")])
def test_a_value_in_another_place_is_refused(identity):
    with pytest.raises(Tampered):
        KEY.decrypt(KEY.encrypt(b"secret", "text", 1), *identity)


def test_a_record_in_another_place_or_kind_is_refused():
    sealed = KEY.encrypt_record(b"secret", b"1")
    for attempt in (
        lambda: KEY.decrypt_record(sealed, b"2"),
        lambda: KEY.decrypt(sealed),
        lambda: Cipher(bytes(32)).decrypt_record(sealed, b"1"),
    ):
        with pytest.raises(Tampered):
            attempt()


@given(st.integers(0, 33), st.integers(0, 7))
def test_every_changed_bit_is_noticed(byte, bit):
    sealed = bytearray(KEY.encrypt_record(b"secret", b"1"))
    sealed[byte % len(sealed)] ^= 1 << bit
    with pytest.raises(Tampered):
        KEY.decrypt_record(bytes(sealed), b"1")


@pytest.mark.parametrize("sealed", ["", "x", "é", "AAAA", "AAAA" * 20, None, 3])
def test_what_was_never_sealed_is_refused(sealed):
    for open in (KEY.decrypt, KEY.decrypt_name):
        with pytest.raises(Tampered):
            open(sealed)
    with pytest.raises(Tampered):
        KEY.decrypt(b"")


def test_only_the_passphrase_opens():
    settings, made = new_key(ID, lambda: "correct horse")
    assert "horse" not in str(settings)
    again, renewed = unlock("/store", ID, settings, lambda: "correct horse")
    assert unlock("/store", ID, renewed, lambda: "correct horse")[1] is None
    assert again.decrypt_name(made.encrypt_name("x")) == "x"
    for wrong in ("", "Correct horse", "correct horse "):
        with pytest.raises(LockedError, match=r"/store.*not the passphrase"):
            unlock("/store", ID, settings, lambda wrong=wrong: wrong)
    with pytest.raises(LockedError, match="M3MLX_PASSPHRASE"):
        unlock("/store", ID, settings, None)
    with pytest.raises(LockedError, match="empty"):
        new_key(ID, lambda: "")


@pytest.mark.parametrize(
    "change", [{"salt": "x"}, {"key": None}, {"cost": 2**40}, {"cost": 0}, {"cost": "many"}]
)
def test_a_damaged_key_is_named(change):
    settings, _ = new_key(ID, lambda: "words")
    with pytest.raises(StoreError, match=r"/store.*damaged"):
        unlock("/store", ID, {**settings, **change}, lambda: "words")


def test_the_key_store_of_the_system_opens():
    keyring = pytest.importorskip("keyring")

    class Ring(keyring.backend.KeyringBackend):
        priority = 1
        kept: dict = {}  # noqa: RUF012

        def get_password(self, service, name):
            return self.kept.get((service, name))

        def set_password(self, service, name, password):
            self.kept[service, name] = password

        def delete_password(self, service, name):
            del self.kept[service, name]

    before = keyring.get_keyring()
    keyring.set_keyring(Ring())
    try:
        settings, made = new_key(ID, None)
        assert list(Ring.kept) == [("m3mlx", ID)]
        opened, _ = unlock("/store", ID, settings, None)
        assert opened.decrypt_name(made.encrypt_name("x")) == "x"
        with pytest.raises(LockedError, match="not in the key store"):
            unlock("/store", "11" * 16, settings, None)
        from keyring.backends.fail import Keyring

        keyring.set_keyring(Keyring())
        with pytest.raises(LockedError, match="does not answer"):
            unlock("/store", ID, settings, None)
    finally:
        keyring.set_keyring(before)
