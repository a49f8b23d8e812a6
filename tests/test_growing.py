"""Tensors that grow: what torch.cat gives, without its copies, and values all the same."""

import pytest
import torch

from onnuri.decoding.growing import PLACES, ROOMS, grown


def there(places: int, axis: int = 1) -> torch.Tensor:
    return torch.randn([2, places, 3] if axis == 1 else [2, 3, places])


@pytest.mark.parametrize("axis", [1, 2])
def test_it_is_what_joining_gives(axis):
    kept = joined = there(5, axis)
    for count in (1, 1, 3, PLACES, 1, 500, 1):
        new = there(count, axis)
        kept, joined = grown(kept, new, axis), torch.cat([joined, new], axis)
        assert torch.equal(kept, joined)


def test_places_that_are_there_are_copied_seldom():
    kept, copies = grown(there(1000), there(1), 1), 0
    for _ in range(1000):
        before, kept = kept, grown(kept, there(1), 1)
        copies += kept.data_ptr() != before.data_ptr()
    assert kept.shape[1] == 2001 and 0 < copies < 5


def test_going_on_twice_or_from_an_older_one_changes_nothing_that_was_given():
    older = grown(there(4), there(1), 1)
    kept = grown(older, there(1), 1)
    assert kept.data_ptr() == older.data_ptr()
    given = [(tensor, tensor.clone()) for tensor in (older, kept)]
    given += [(tensor, tensor.clone()) for tensor in (grown(older, there(2), 1), grown(kept, there(1), 1))]
    given += [(tensor, tensor.clone()) for tensor in (grown(kept, there(1), 1), grown(kept[:1], there(1)[:1], 1))]
    assert all(torch.equal(tensor, copy) for tensor, copy in given)


def test_gradients_flow_through_it():
    kept, new = there(4), there(1).requires_grad_()
    grown(kept, new, 1).sum().backward()
    assert new.grad is not None and torch.equal(new.grad, torch.ones_like(new))
    learnt = kept.clone().requires_grad_()
    grown(learnt, there(1), 1).sum().backward()
    assert learnt.grad is not None


def test_room_is_given_back_with_its_tensor():
    kept = grown(there(4), there(1), 1)
    before = len(ROOMS)
    del kept
    assert len(ROOMS) == before - 1


def test_a_graph_joins():
    class Join(torch.nn.Module):
        def forward(self, kept, new):
            return grown(kept, new, 1)

    example = (there(4), there(1))
    graph = torch.export.export(Join(), example)
    assert torch.equal(graph.module()(*example), torch.cat(example, 1))
    assert "aten.cat" in str(graph.graph)
