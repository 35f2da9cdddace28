"""The data sets as their authors publish them: where, under which licence, and how each file's bytes add up."""

from __future__ import annotations

from dataclasses import dataclass

UCI = "https://archive.ics.uci.edu"


@dataclass(frozen=True)
class File:
    """A file of the original: its place below the data set's folder, its sha256 and size in bytes where known."""

    path: str
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Published:
    """A data set to fetch.

    urls       zip files, any of which will do
    pattern    what of a zip's members is wanted; the groups fill `place`, the path below the data set's folder
    files      all that must be there in the end
    """

    name: str
    title: str
    page: str
    urls: tuple[str, ...]
    licence: str
    citation: str
    pattern: str
    place: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes of the files whose size is known."""
        return sum(file.size for file in self.files)


_LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/), as the UCI repository says of it"

PAMAP2 = Published(
    name="pamap2",
    title="PAMAP2 Physical Activity Monitoring",
    page=f"{UCI}/dataset/231/pamap2+physical+activity+monitoring",
    urls=(
        f"{UCI}/static/public/231/pamap2+physical+activity+monitoring.zip",
        f"{UCI}/ml/machine-learning-databases/00231/PAMAP2_Dataset.zip",
    ),
    licence=_LICENCE,
    citation="A. Reiss, D. Stricker: Introducing a New Benchmarked Dataset for Activity Monitoring, ISWC 2012",
    pattern=r"Protocol/(subject10[1-9]\.dat)",
    place=r"Protocol/\1",
    files=(
        File(
            "Protocol/subject101.dat", "80b3fffd089c236ae88098df3b906b8d3c67a858023fe4f75045d78612147266", 141_698_539
        ),
        File(
            "Protocol/subject102.dat", "468f3c6ba3e6e961f383783665265afbcddbbd33a3a84bba0386b7d0d4e3c632", 207_349_310
        ),
        File(
            "Protocol/subject103.dat", "5be64631d085e3efc700728395516da3512ff9de17dab30d253508441a98d3f0", 117_863_364
        ),
        File(
            "Protocol/subject104.dat", "7eb272213cbfe11d9e466a2163b6c9c2ed8d2542fc6f08283fd1bf222cac8994", 153_227_482
        ),
        File(
            "Protocol/subject105.dat", "7837cfede57fe45ec20d553c6c2b0c498ab324daae23bfd202c0ffea9f71a7f6", 173_773_599
        ),
        File(
            "Protocol/subject106.dat", "0da1dda3fa56d75d6413fc9198949d3ebc2102d77574cb5fe0739674687609f2", 168_263_273
        ),
        File(
            "Protocol/subject107.dat", "a02195e9599eb249f79103912d27eb4f62d8a0f59e4763b0dd8250fee5f3f020", 145_823_268
        ),
        File(
            "Protocol/subject108.dat", "81ce6b21b9c1e01dc02099c4f9387699547b08b28b387d09a56e0cb0a8af22fc", 190_019_653
        ),
        File("Protocol/subject109.dat", "5109d5cd8334769566b4ae602adf3e5f4bb7b9ee8ca678f0c481d333114b07c7", 3_891_140),
    ),
)

MHEALTH = Published(
    name="mhealth",
    title="MHEALTH (Mobile Health)",
    page=f"{UCI}/dataset/319/mhealth+dataset",
    urls=(
        f"{UCI}/static/public/319/mhealth+dataset.zip",
        f"{UCI}/ml/machine-learning-databases/00319/MHEALTHDATASET.zip",
    ),
    licence=_LICENCE,
    citation="O. Banos et al.: mHealthDroid, a Novel Framework for Agile Development of Mobile Health Applications, "
    "IWAAL 2014",
    pattern=r"(mHealth_subject(?:[1-9]|10)\.log)",
    place=r"MHEALTHDATASET/\1",
    files=(
        File("MHEALTHDATASET/mHealth_subject1.log", "da8d1bbf644a206886333f945a1dd7fe5081382b3bb3ee42821f08ad765732e4"),
        File("MHEALTHDATASET/mHealth_subject2.log", "20e288750fe9f4f0495686fabf1500bfe655a549f0d2c3a9be5aa6456461b8f1"),
        File("MHEALTHDATASET/mHealth_subject3.log", "90ead135c9fa9f1188e3b1f7afc0c95899a0614a15917cf3590f52923d6e03fd"),
        File("MHEALTHDATASET/mHealth_subject4.log", "3b66f87a292f4cc457aea18cb7e15a10c18055c803df27f5284c6a1c5751a469"),
        File("MHEALTHDATASET/mHealth_subject5.log", "380e526a85bde64baebd1d1a2478c4cfad947a4ab994c8b39b8dcda195f78a30"),
        File("MHEALTHDATASET/mHealth_subject6.log", "4b8bc81186229e096937f37f9ae070017ee653005b21f88fcd0504e9195f8926"),
        File("MHEALTHDATASET/mHealth_subject7.log", "5e372b2fad64a3ebaadd103ec09cde68d448ef5b707b010d02f438b8b9203b1f"),
        File("MHEALTHDATASET/mHealth_subject8.log", "c6ddb8926be4c193890a28cc84cafe35c16a4bc14f23c3e696d504643652a61b"),
        File("MHEALTHDATASET/mHealth_subject9.log", "fa68f90a9dfeda47abce41ebc1dec8ce55f66dc56d513ab90a6ae20ad045f2c9"),
        File(
            "MHEALTHDATASET/mHealth_subject10.log", "382d3d7b58e1fe24679fb241fd7e48ce1992757f6b1b237a56cd660e8f1fabda"
        ),
    ),
)

DSADS = Published(
    name="dsads",
    title="Daily and Sports Activities",
    page=f"{UCI}/dataset/256/daily+and+sports+activities",
    urls=(
        f"{UCI}/static/public/256/daily+and+sports+activities.zip",
        f"{UCI}/ml/machine-learning-databases/00256/data.zip",
    ),
    licence=_LICENCE,
    citation="K. Altun, B. Barshan, O. Tuncel: Comparative Study on Classifying Human Activities with Miniature "
    "Inertial and Magnetic Sensors, Pattern Recognition 43, 2010",
    pattern=r"(a\d\d/p\d/s\d\d\.txt)",
    place=r"data/\1",
    files=tuple(
        File(f"data/a{activity:02d}/p{subject}/s{segment:02d}.txt")
        for activity in range(1, 20)
        for subject in range(1, 9)
        for segment in range(1, 61)
    ),
)

PUBLISHED = {p.name: p for p in (PAMAP2, MHEALTH, DSADS)}
