"""Bundles: what one holds, that its bytes repeat, and that every hostile one is refused before anything changes."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle import MANIFEST, BadBundle, Host, Manifest, check_fit, check_path, peek, unpack, verify
from tools.flashing.bundle import Bundle, pack
from tools.flashing.configuration import device_files, toml
from tools.flashing.targets import TARGETS, target
from tools.flashing.wheelhouse import Wheelhouse, build, look_into


def tiny_wheel(folder: Path, name: str, version: str = "1.0", tag: str = "py3-none-any") -> Path:
    """A wheel that pip would take, with nothing in it but a module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(zipfile.ZipInfo(f"{name}.py"), "here = True\n")
        said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
        wheel.writestr(zipfile.ZipInfo(f"{name}-{version}.dist-info/METADATA"), said)
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Wheelhouse:
    folder = tmp_path / "wheels"
    project = tiny_wheel(folder, "relief_edge")
    tiny_wheel(folder, "pip", "26.0")
    tiny_wheel(folder, "numpy", "1.26.4", "cp310-cp310-manylinux_2_17_aarch64.manylinux2014_aarch64")
    return Wheelhouse(folder, project, "relief-edge[infer]==1.0\nnumpy==1.26.4 \\\n    --hash=sha256:0\n", torch=False)


@pytest.fixture
def bundle(wheels: Wheelhouse, tmp_path: Path) -> Bundle:
    return pack(target("jetpack6"), wheels, tmp_path / "out", device="wrist", config={"device.toml": b"x = 1\n"})


def rewritten(bundle: Bundle, path: Path, change: object) -> Path:
    """The archive with its members passed through `change(name, bytes) -> list of (TarInfo, bytes)`."""
    with tarfile.open(bundle.path) as source, tarfile.open(path, "w") as sink:
        for member in source:
            file = source.extractfile(member)
            for info, content in change(member, file.read() if file else b""):  # type: ignore[operator]
                info.size = len(content)
                sink.addfile(info, io.BytesIO(content))
    return path


def refused(archive: Path, tmp_path: Path, *words: str) -> None:
    """The archive is refused in one line that has these words, and leaves nothing behind."""
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(BadBundle) as error:
        unpack(archive, place / "bundle")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert list(place.iterdir()) == []


def test_the_same_inputs_give_the_same_bytes(wheels: Wheelhouse, tmp_path: Path) -> None:
    first, second = (pack(target("jetpack6"), wheels, tmp_path / out) for out in ("a", "b"))
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_bundle_is_read_back_with_every_file_checked(bundle: Bundle, tmp_path: Path) -> None:
    manifest = unpack(bundle.path, tmp_path / "bundle", digest=bundle.digest)
    assert manifest == bundle.manifest == peek(bundle.path)
    assert (tmp_path / "bundle/install.sh").stat().st_mode & 0o100
    assert {"install.sh", "LICENCES.md", "config/device.toml", "units/launch"} <= set(manifest.files)
    assert {"name": "numpy", "version": "1.26.4", "licence": "MIT"} in manifest.packages


@pytest.mark.parametrize("name", ["wheels/numpy", "install.sh", "config/device.toml", "requirements.txt", MANIFEST])
def test_a_changed_byte_anywhere_is_found(bundle: Bundle, tmp_path: Path, name: str) -> None:
    def change(info: tarfile.TarInfo, content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        if info.name.startswith(name):
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        return [(info, content)]

    refused(rewritten(bundle, tmp_path / "bad.tar", change), tmp_path, name.split("/")[0])


@pytest.mark.parametrize("name", ["../escaped", "/etc/escaped", "wheels/../../escaped", "a\\..\\b"])
def test_a_path_that_escapes_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    def change(info: tarfile.TarInfo, content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        more = [(tarfile.TarInfo(name), b"x")] if info.name == "install.sh" else []
        return [(info, content), *more]

    refused(rewritten(bundle, tmp_path / "bad.tar", change), tmp_path, "leads out of the bundle")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(bundle: Bundle, tmp_path: Path, kind: bytes) -> None:
    def change(info: tarfile.TarInfo, content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        if info.name != "install.sh":
            return [(info, content)]
        link = tarfile.TarInfo("wheels/link")
        link.type, link.linkname = kind, "/etc/passwd"
        return [(info, content), (link, b"")]

    refused(rewritten(bundle, tmp_path / "bad.tar", change), tmp_path, "wheels/link", "plain files")


def test_a_file_that_the_manifest_does_not_name_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    def change(info: tarfile.TarInfo, content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [(info, content), *([(tarfile.TarInfo("wheels/more.whl"), b"x")] if info.name == "install.sh" else [])]

    refused(rewritten(bundle, tmp_path / "bad.tar", change), tmp_path, "wheels/more.whl", "not named")


def test_a_file_that_comes_twice_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    refused(rewritten(bundle, tmp_path / "bad.tar", lambda i, c: [(i, c), (i, c)]), tmp_path, "twice")


def test_a_missing_file_is_named(bundle: Bundle, tmp_path: Path) -> None:
    keep = rewritten(bundle, tmp_path / "bad.tar", lambda i, c: [] if "numpy" in i.name else [(i, c)])
    refused(keep, tmp_path, "wheels/numpy", "missing")


def test_a_pinned_package_without_a_wheel_is_not_packed(wheels: Wheelhouse, tmp_path: Path) -> None:
    next(wheels.folder.glob("numpy*")).unlink()
    with pytest.raises(BadBundle, match=r"numpy 1\.26\.4 is pinned in requirements\.txt and has no wheel"):
        pack(target("jetpack6"), wheels, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_wheel_of_another_architecture_is_not_packed(wheels: Wheelhouse, tmp_path: Path) -> None:
    next(wheels.folder.glob("numpy*")).unlink()
    tiny_wheel(wheels.folder, "numpy", "1.26.4", "cp310-cp310-manylinux2014_x86_64")
    with pytest.raises(BadBundle, match="is not for aarch64"):
        pack(target("jetpack6"), wheels, tmp_path / "out")


@pytest.mark.parametrize("cut", [0.1, 0.3, 0.6])
def test_a_bundle_that_was_cut_off_is_refused(bundle: Bundle, tmp_path: Path, cut: float) -> None:
    whole = bundle.path.read_bytes()
    (tmp_path / "bad.tar").write_bytes(whole[: int(len(whole) * cut)])
    refused(tmp_path / "bad.tar", tmp_path)


def test_an_archive_with_another_digest_is_not_even_opened(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="announced"):
        unpack(bundle.path, tmp_path / "bundle", digest="0" * 64)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (Host("x86_64", "3.10", 1 << 40), "is for aarch64, the board is x86_64"),
        (Host("aarch64", "3.12", 1 << 40), "is for Python 3.10, the board has 3.12"),
        (Host("aarch64", "3.10", 10), "make room first"),
    ],
)
def test_another_board_and_a_full_disk_are_refused(bundle: Bundle, host: Host, words: str) -> None:
    with pytest.raises(BadBundle, match=words):
        check_fit(bundle.manifest, host)
    check_fit(bundle.manifest, Host("aarch64", "3.10", 1 << 40))


def test_an_unpacked_bundle_with_a_link_in_it_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    unpack(bundle.path, folder)
    shutil.move(folder / "install.sh", tmp_path / "elsewhere")
    (folder / "install.sh").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadBundle, match=r"install\.sh"):
        verify(folder)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_manifest_by_accident(raw: bytes) -> None:
    with pytest.raises(BadBundle):
        Manifest.decode(raw)


@given(st.lists(st.sampled_from(["a", "b.whl", "..", ".", "", "wheels"]), max_size=5).map("/".join))
def test_a_path_is_taken_only_if_it_stays_inside(name: str) -> None:
    root = Path("/somewhere/bundle")
    try:
        check_path(name)
    except BadBundle:
        return
    assert (root / name).resolve().is_relative_to(root)


# -- the project's wheel, and a device's part of the configuration -----------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("project"))
    except BadBundle as error:
        if "hatchling" in str(error) or "No matching distribution" in str(error):
            pytest.skip(f"no wheel can be built without the package index: {error}")
        raise


def test_the_projects_wheel_holds_all_rooms_and_nothing_else(project: Path) -> None:
    with zipfile.ZipFile(project) as wheel:
        names = wheel.namelist()
    assert not [n for n in names if n.startswith(("tests/", "data/", "runs/"))]
    assert "device_runtime/units/launch" in names


def test_a_wheel_that_lacks_a_module_or_brings_a_key_is_refused(project: Path, tmp_path: Path) -> None:
    for drop, add, words in (("device_runtime/install.py", "", "missing"), ("", "tools/key.pem", "does not belong")):
        changed = tmp_path / project.name
        with zipfile.ZipFile(project) as source, zipfile.ZipFile(changed, "w") as sink:
            for name in source.namelist():
                if name != drop:
                    sink.writestr(name, source.read(name))
            if add:
                sink.writestr(add, "secret")
        with pytest.raises(BadBundle, match=words):
            look_into(changed)


CONFIG = """
fleet = "ward"
[broker]
host = "broker.example.org"
port = 8883
identities = "identities"
[[device]]
id = "wrist"
modalities = ["chest_acc", "ecg"]
[device.source]
dataset = "synthetic"
speed = inf
[[device]]
id = "hub"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    own = tmp_path / "identities" / "wrist"
    own.mkdir(parents=True)
    for name in ("ca", "cert", "key"):
        (own / f"{name}.pem").write_text(f"{name} of wrist\n")
    (tmp_path / "fleet.toml").write_text(CONFIG)
    return tmp_path / "fleet.toml"


def test_without_credentials_a_bundle_has_no_secret_and_the_board_makes_its_key(config: Path) -> None:
    files = device_files(config, "wrist", credentials=False)
    assert set(files) == {"device.toml", "name", "identity/ca.pem", "wants-identity"}
    assert not any(b"key of wrist" in content for content in files.values())


def test_with_credentials_the_board_gets_its_own(config: Path) -> None:
    files = device_files(config, "wrist", credentials=True)
    assert files["identity/key.pem"] == b"key of wrist\n"
    assert "wants-identity" not in files


def test_a_boards_file_means_what_the_fleets_file_meant(config: Path, tmp_path: Path) -> None:
    from device_runtime.config import settings

    alone = tmp_path / "device.toml"
    alone.write_bytes(device_files(config, "wrist", credentials=True)["device.toml"])
    before, after = settings(config, "wrist"), settings(alone)
    assert after.fleet == before.fleet
    assert after.broker.host == before.broker.host
    assert str(after.broker.key) == "/etc/relief/identity/key.pem"
    assert after.device.model_copy(update={"state": before.device.state}) == before.device


def test_a_password_is_not_packed_unasked(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    config.write_text('[broker]\nusername = "u"\npassword = "secret"\n[[device]]\nid = "wrist"\n')
    with pytest.raises(ValueError, match="include-credentials"):
        device_files(config, "wrist", credentials=False)
    assert b"secret" in device_files(config, "wrist", credentials=True)["device.toml"]


Plain = st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.text(max_size=20))


@given(st.dictionaries(st.sampled_from("abcd"), st.one_of(Plain, st.lists(Plain, max_size=3)), max_size=4))
def test_what_is_written_as_toml_is_read_back(values: dict[str, object]) -> None:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    nested = {**values, "inner": {**values}, "many": [values, values]}
    assert tomllib.loads(toml(nested)) == nested


def test_every_target_says_what_was_never_shown_on_it() -> None:
    assert all("never run on a board" in t.about for name, t in TARGETS.items() if name.startswith("jetpack"))
    with pytest.raises(ValueError, match="jetpack6, jetpack7, debian12-arm64"):
        target("jetpack5")


def test_the_licence_list_names_what_stays_apart(bundle: Bundle, tmp_path: Path) -> None:
    unpack(bundle.path, tmp_path / "bundle")
    text = (tmp_path / "bundle/LICENCES.md").read_text()
    assert "| numpy | 1.26.4 | MIT |" in text
    assert "AGPL" in text
    assert not any("jetson" in json.dumps(one) for one in bundle.manifest.packages)
