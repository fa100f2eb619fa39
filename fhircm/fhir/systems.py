"""The hub's own identifier and code systems, which every room must write alike.

https://hl7.org/fhir/R4/identifier-registry.html
"""

HUB = "https://fhircm.example/"
DELIVERY = f"{HUB}delivery"  # identifies what the hub sent, on everything that it sends
REFERRAL = f"{HUB}referral"  # the number that a referral keeps on both sides
COORDINATION = f"{HUB}CodeSystem/coordination"
LONGITUDINAL = f"{HUB}longitudinal"  # identifies what the hub made out of the records of all partners: never an input of it
ROLE = f"{HUB}role"  # the roles of profiles/role: in Task.performerType the queue of those who have it, in PractitionerRole.code theirs
JOB = f"{HUB}CodeSystem/job"  # what a job is, on its Task
OPERATION = f"{HUB}operation"  # names an operation in an AuditEvent
CLIENT = f"{HUB}client"  # identifies a SMART client
SECURITY = f"{HUB}security"  # what happened to clients, people and grants, in an AuditEvent
SERVER = f"{HUB}server"  # identifies a hub by its address, as the source of its AuditEvents
