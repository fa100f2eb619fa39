"""What is asked again and again is planned once on PostgreSQL, of however many lists, patients and resources it is asked."""

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.coordination.rules import RULES
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.resources import Put, Store
from fhircm.store.stored import micros
from fhircm.store.work_list import SORTS, WorkQuery

WHO, AT = "Practitioner/ann", "Organization/clinic"
TIMES = 12  # PostgreSQL tries five times what a plan of its own would bring


def _task(number):
    return Put(
        check_tree(
            {
                "resourceType": "Task",
                "id": f"t{number}",
                "status": "requested",
                "intent": "order",
                "for": {"reference": f"Patient/p{number}"},
                "owner": {"reference": WHO},
                "requester": {"reference": AT},
            }
        )
    )


async def test_work_lists_and_writes_do_not_plan_anew(postgres_url, clock):
    store = Store(await open_database(postgres_url), clock=clock, rules=RULES)
    known = frozenset({WHO, AT})
    ann = GuardedStore(
        store,
        Principal("app", parse_scopes("user/*.cruds"), frozenset({"nurse"}), organization=AT, user=WHO, known_as=known),
    )
    people = [{"resourceType": "Organization", "id": "clinic", "name": "Clinic"}, {"resourceType": "Practitioner", "id": "ann"}]
    patients = [{"resourceType": "Patient", "id": f"p{number}"} for number in range(3)]
    await store.transact([Put(check_tree(one)) for one in [*people, *patients]], origin="test")
    await store.transact([_task(number) for number in range(3)], origin="test")
    for number in range(TIMES):
        some = 1 if number < TIMES - 4 else 3  # what is cheap comes first: PostgreSQL goes by it
        await ann.transact([_task(one) for one in range(some)], [("u", "Task")])
        for sort in SORTS:
            page = await ann.work_list(WorkQuery((WHO, AT, "Practitioner/bob")[:some], micros(clock()), sort))
            assert len(page.tasks) == 3
    async with store.database.reading() as connection:
        asked = await connection.fetch(
            "SELECT statement, generic_plans AS kept FROM pg_prepared_statements WHERE generic_plans + custom_plans >= $1", TIMES
        )
    await store.close()
    assert len(asked) >= 8
    assert not [row["statement"][:120] for row in asked if not row["kept"]]
