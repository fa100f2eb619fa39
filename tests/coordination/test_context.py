"""What is on record is found whole, however much is asked for at once."""

from fhircm.coordination.context import Record, any_of
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Put


async def test_more_alternatives_than_a_search_may_have_are_asked_for_in_parts(store):
    ids = [f"{number:036}" for number in range(150)]
    tasks = [check_tree({"resourceType": "Task", "id": id, "status": "ready", "intent": "order"}) for id in ids]
    await store.transact([Put(task, 0) for task in tasks], origin="test")
    wanted = any_of([*ids[:120], ids[0]])
    assert len(wanted) > 2000
    found = await Record(store).find("Task", ("status", "ready"), ("_id", wanted))
    assert [one.id for one in found] == ids[:120]
