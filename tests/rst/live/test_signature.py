"""An adapter is what one of the trusted keys signed, whole and unchanged, on every way in."""

import copy
import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rst import AutoRSTModel, RSTModel, SignatureError, SparseDelta, export
from rst.cli import main
from rst.live.adapter_folder import write_adapter
from rst.live.signature import check_signature, sign
from tests.refusal import refused
from tests.rst.cli.conftest import files
from tests.rst.live.hub_stand_in import Hub, Repository

verifying = pytest.importorskip("model_signing.verifying")
x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

DAY = datetime.timedelta(days=1)


def write_key(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    """A new private key, and its public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def alice(tmp_path: Path) -> tuple[Path, Path]:
    return write_key(tmp_path, "alice")


@pytest.fixture
def mallory(tmp_path: Path) -> tuple[Path, Path]:
    return write_key(tmp_path, "mallory")


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 5)


@pytest.fixture
def delta(base: nn.Module) -> SparseDelta:
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_parameter("weight")[0] += 1
    return export(base, tuned)


@pytest.fixture
def adapter(tmp_path: Path, delta: SparseDelta) -> Path:
    write_adapter(tmp_path / "adapter", delta)
    return tmp_path / "adapter"


def test_what_was_signed_is_trusted_and_loads(adapter, alice, mallory, base):
    private, public = alice
    assert sign(adapter, private) == adapter / "model.sig"
    assert check_signature(adapter, [mallory[1], public]) == public
    RSTModel.from_pretrained(base, adapter, trusted_keys=[public])


def change_settings(adapter: Path) -> None:
    settings = adapter / "rst_config.json"
    settings.write_text(settings.read_text().replace('"rst"', '"rst" '))


def change_delta(adapter: Path) -> None:
    """By another that is intact: its own digest fits."""
    change = SparseDelta.load(adapter / "delta.safetensors")
    change["weight"].values.add_(1)
    change.save(adapter / "delta.safetensors")
    SparseDelta.load(adapter / "delta.safetensors")


def add_a_file(adapter: Path) -> None:
    (adapter / "modeling.py").write_text("")


def remove_the_card(adapter: Path) -> None:
    (adapter / "README.md").unlink()


def remove_the_signature(adapter: Path) -> None:
    (adapter / "model.sig").unlink()


@pytest.mark.parametrize("meddle", [change_settings, change_delta, add_a_file, remove_the_card, remove_the_signature])
def test_what_was_changed_since_is_refused_and_the_model_left_alone(
    adapter: Path, alice: tuple[Path, Path], base: nn.Module, meddle: Callable[[Path], None]
) -> None:
    sign(adapter, alice[0])
    meddle(adapter)
    before = copy.deepcopy(base.state_dict())
    with refused(SignatureError, file=adapter) as caught:
        check_signature(adapter, [alice[1]])
    assert "Digest(" not in str(caught.value)
    model = RSTModel(base)
    for load in (model.load_adapter, model.hotswap_adapter):
        with pytest.raises(SignatureError):
            load(adapter, "default", trusted_keys=[alice[1]])
    with pytest.raises(SignatureError):
        AutoRSTModel.from_pretrained(adapter, trusted_keys=[alice[1]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert not model.adapter_names


def test_another_s_signature_is_refused_and_so_is_no_key_at_all(adapter, alice, mallory):
    sign(adapter, mallory[0])
    for keys in ([alice[1]], []):
        with refused(SignatureError, file=adapter):
            check_signature(adapter, keys)


def test_a_file_s_signature_lies_beside_it(tmp_path, delta, alice):
    delta.save(tmp_path / "d.safetensors")
    assert sign(tmp_path / "d.safetensors", alice[0]) == tmp_path / "d.safetensors.sig"
    assert check_signature(tmp_path / "d.safetensors", [alice[1]])
    (tmp_path / "d.safetensors").write_bytes(b"other")
    with refused(SignatureError, file=tmp_path / "d.safetensors"):
        check_signature(tmp_path / "d.safetensors", [alice[1]])


def test_an_issuer_is_trusted_for_whom_it_vouches(tmp_path, adapter, alice, mallory):
    def name(common: str) -> "x509.Name":
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def certificate(subject: str, key: Path, issuer: str, issuer_key: Path, *, authority: bool) -> Path:
        own, other = (serialization.load_pem_private_key(path.read_bytes(), None) for path in (key, issuer_key))
        now = datetime.datetime.now(datetime.timezone.utc)
        built = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False), True
            )
        )
        if not authority:
            built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
        path = tmp_path / f"{subject}.crt"
        path.write_bytes(built.sign(other, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    office, _ = write_key(tmp_path, "office")
    root = certificate("office", office, "office", office, authority=True)
    leaf = certificate("alice", alice[0], "office", office, authority=False)
    stranger = certificate("stranger", mallory[0], "stranger", mallory[0], authority=True)
    sign(adapter, alice[0], certificate=leaf)
    assert check_signature(adapter, [root]) == root
    with refused(SignatureError, file=adapter):
        check_signature(adapter, [stranger])


def test_from_the_hub_the_whole_repository_is_checked(hub: Hub, adapter, alice, mallory, base, monkeypatch):
    sign(adapter, alice[0])
    hub.repositories["me/signed"] = Repository(False, {"main": files(adapter) | {".gitattributes": b"x"}})
    RSTModel.from_pretrained(base, "me/signed", trusted_keys=[alice[1]])
    with pytest.raises(SignatureError):
        RSTModel.from_pretrained(base, "me/signed", trusted_keys=[mallory[1]])
    hub.repositories["me/signed"].branches["main"]["more.py"] = b"import os"
    with pytest.raises(SignatureError):
        RSTModel.from_pretrained(base, "me/signed", trusted_keys=[alice[1]])
    assert main(["verify", "me/signed", "--signed-by", str(alice[1])]) == 2
    del hub.repositories["me/signed"].branches["main"]["more.py"]
    verify, checked = verifying.Config.verify, []
    monkeypatch.setattr(verifying.Config, "verify", lambda *given: checked.append(given) or verify(*given))
    assert main(["verify", "me/signed", "--signed-by", str(alice[1])]) == 0
    assert len(checked) == 1


def test_the_command_line(adapter, alice, mallory, capsys, monkeypatch, tmp_path):
    locked, public = write_key(tmp_path, "locked", b"secret")
    assert main(["sign", str(adapter), "--key", str(locked)]) == 2
    assert not (adapter / "model.sig").exists()
    monkeypatch.setenv("RST_KEY_PASSWORD", "secret")
    assert main(["sign", str(adapter), "--key", str(locked)]) == 0
    assert "--signed-by" in capsys.readouterr().out
    assert main(["verify", str(adapter), "--signed-by", str(public)]) == 0
    assert str(public) in capsys.readouterr().out
    assert main(["verify", str(adapter), "--signed-by", str(mallory[1])]) == 2


def test_a_signature_is_replaced_with_force_alone(adapter, alice, mallory, capsys):
    signing = ["sign", str(adapter), "--key"]
    assert main([*signing, str(alice[0])]) == 0
    before = files(adapter)
    capsys.readouterr()
    assert main([*signing, str(mallory[0])]) == 2
    assert "model.sig" in (said := capsys.readouterr().err)
    assert "--force" in said
    assert files(adapter) == before
    assert main([*signing, str(mallory[0]), "--force"]) == 0
    assert check_signature(adapter, [mallory[1]]) == mallory[1]


@pytest.mark.parametrize("key", ["missing.pem", "README.md"])
def test_what_is_no_key_is_refused(adapter, tmp_path, key):
    with refused(SignatureError, key, file=adapter):
        sign(adapter, tmp_path / "adapter" / key)
    assert not (adapter / "model.sig").exists()


def test_without_digests_of_the_base_nothing_is_proven(adapter, base, delta, tmp_path, capsys):
    import dataclasses

    torch.save(base.state_dict(), tmp_path / "base.pt")
    bare = {name: dataclasses.replace(change, base=None) for name, change in delta.items()}
    dataclasses.replace(delta, parameters=bare).save(tmp_path / "bare.safetensors")
    assert main(["verify", str(tmp_path / "bare.safetensors"), "--base", str(tmp_path / "base.pt")]) == 1
    assert "not checked" in capsys.readouterr().out
    assert main(["verify", str(adapter), "--base", str(tmp_path / "base.pt")]) == 0
