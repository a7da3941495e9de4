"""The free list against a map of pages."""

from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.store.extents import Extent, FreeList, plan_eviction

PAGE, PAGES = 16, 24


def free_pages(free: FreeList) -> set[int]:
    return {page for extent in free.extents() for page in range(extent.offset // PAGE, extent.end // PAGE)}


def runs(pages: set[int]) -> list[tuple[int, int]]:
    """(first page, count) of every run of free pages, in order."""
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found


# Each step allocates so many bytes, or releases the extent of that age when negative.
steps = st.lists(st.one_of(st.integers(0, PAGE * PAGES + 1), st.integers(-8, -1)), max_size=60)


@given(steps)
def test_first_fit_matches_a_map_of_pages(actions: list[int]) -> None:
    free = FreeList(PAGE * PAGES + 5, PAGE)
    model = set(range(PAGES))
    taken: list[Extent] = []
    for action in actions:
        if action >= 0:
            pages = max(1, -(-action // PAGE))
            fits = [first for first, count in runs(model) if count >= pages]
            extent = free.allocate(action)
            if not fits:
                assert extent is None
                continue
            assert extent == Extent(offset=fits[0] * PAGE, length=pages * PAGE)
            model -= set(range(fits[0], fits[0] + pages))
            taken.append(extent)
        elif taken:
            extent = taken.pop(action % len(taken))
            free.release(extent)
            model |= set(range(extent.offset // PAGE, extent.end // PAGE))
        assert [(e.offset // PAGE, e.length // PAGE) for e in free.extents()] == runs(model)
        assert free.free_bytes == len(model) * PAGE
        assert free.largest_bytes == max((count for _, count in runs(model)), default=0) * PAGE


@given(st.lists(st.integers(1, 6), max_size=12), st.integers(1, PAGES), st.randoms())
@settings(max_examples=200)
def test_an_eviction_makes_room_and_takes_no_more_than_its_window(sizes: list[int], wanted: int, random) -> None:
    free = FreeList(PAGE * PAGES, PAGE)
    taken = [extent for size in sizes if (extent := free.allocate(size * PAGE))]
    random.shuffle(taken)
    kept, candidates = taken[: len(taken) // 2], taken[len(taken) // 2 :]
    plan = plan_eviction(free, candidates, wanted * PAGE)
    everything = free.copy()
    for extent in candidates:
        everything.release(extent)
    assert (plan is None) == (everything.largest_bytes < wanted * PAGE)
    if plan is None:
        return
    assert not plan or free.largest_bytes < wanted * PAGE, "evicted although there was room"
    for index in plan:
        free.release(candidates[index])
    found = free.allocate(wanted * PAGE)
    assert found is not None
    assert all(candidates[index].overlaps(found) for index in plan), "evicted a shard outside the window"
    assert not any(extent.overlaps(found) for extent in kept)


def test_the_coldest_that_suffice_are_evicted() -> None:
    free = FreeList(4 * PAGE, PAGE)
    extents = [free.allocate(PAGE) for _ in range(4)]
    coldest_first = [extents[index] for index in (2, 0, 3, 1)]
    assert plan_eviction(free, coldest_first, PAGE) == [0]
    assert plan_eviction(free, coldest_first, 2 * PAGE) == [0, 2]  # 2 and 3 touch; 0 stays although it is colder
    assert plan_eviction(free, coldest_first[:2], 2 * PAGE) is None


def test_a_copy_does_not_share() -> None:
    free = FreeList(4 * PAGE, PAGE)
    twin = free.copy()
    twin.allocate(PAGE)
    assert free.free_bytes == 4 * PAGE and twin.free_bytes == 3 * PAGE
