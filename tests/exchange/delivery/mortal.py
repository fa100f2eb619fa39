"""A hub that dies at a write, for tests of what is sent by the next one."""


class Killed(BaseException):
    """The process ends here."""


class Mortal:
    """A store that dies at its nth write: before it is done, or right after."""

    def __init__(self, store, moment, after):
        self.store, self.moment, self.after = store, moment, after

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def transact(self, operations, *, origin):
        self.moment -= 1
        if self.moment == 0 and not self.after:
            raise Killed
        stored = await self.store.transact(operations, origin=origin)
        if self.moment == 0:
            raise Killed
        return stored
