"""`raylog lineage` as it is read: two trees, each version's branch once, deleted ones named as such."""

from raylog import screen
from raylog.catalog.lineage import Lineage, Origin


def origin(version: str, *parents: str, exists: bool = True) -> Origin:
    return Origin(version=version, parents=parents, exists=exists)


def test_trees() -> None:
    page, raw = origin("page@1"), origin("raw@1", "page@1", exists=False)
    left, right = origin("left@1", "raw@1"), origin("right@1", "raw@1")
    model = origin("model@2", "left@1", "right@1")
    served = origin("served@1", "model@2")
    with screen.out.capture() as shown:
        screen.show_lineage(
            Lineage(version=model, ancestors=[left, right, raw, page], descendants=[served], is_cut=False)
        )
    assert shown.get().splitlines() == [
        "model@2 was made from",
        "├── left@1",
        "│   └── raw@1 (deleted)",
        "│       └── page@1",
        "└── right@1",
        "    └── raw@1 (deleted) (its branch is shown once)",
        "and into",
        "└── served@1",
    ]
    with screen.out.capture() as shown, screen.err.capture() as said:
        screen.show_lineage(Lineage(version=page, ancestors=[], descendants=[], is_cut=True))
    assert shown.get().splitlines() == ["page@1 was made from nothing", "and into nothing"]
    assert "more than is shown" in said.get()
