"""A browser, as a person uses it: everything that it asks for over the network is seen."""

from urllib.parse import parse_qsl, urlsplit

from .population import PASSWORD


def parameters(url):
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


class Window:
    """`requests`: all that were sent; `faults`: what the console calls errors."""

    def __init__(self, context, page, hub):
        self.context, self.page, self.hub = context, page, hub
        self.requests, self.faults = [], []

    @classmethod
    async def open(cls, context, hub):
        one = cls(context, await context.new_page(), hub)
        one.page.set_default_timeout(20_000)
        context.on("request", lambda request: one.requests.append(request))
        one.page.on("pageerror", lambda error: one.faults.append(str(error)))
        one.page.on("console", lambda message: one.faults.append(message.text) if message.type == "error" else None)
        return one

    async def sign_in(self, username):
        """On the page of the hub that asks for it."""
        await self.page.get_by_label("User name").fill(username)
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Sign in").click()

    async def press(self, name):
        await self.page.get_by_role("button", name=name).click()

    async def app_tells(self):
        """What the app says in the end."""
        await self.page.wait_for_url(lambda url: url.startswith(f"{self.hub.apps.origin}/"))
        line = self.page.locator("#told:not(:empty)")
        await line.wait_for(state="attached")
        return await line.inner_text()

    async def shown(self):
        """The patient and the conditions that the app shows."""
        assert await self.app_tells() == "shown", self.faults
        return await self.page.locator("#patient").inner_text(), await self.page.locator("#conditions li").all_inner_texts()

    async def run(self, script, *arguments):
        """JavaScript in the page of the app; `client` is what the library made of the launch. An error is told as `{error}`."""
        wrapped = (
            f"async argument => {{ try {{ return await ({script})(argument); }} catch (e) {{ return {{error: e.message}}; }} }}"
        )
        return await self.page.evaluate(wrapped, *arguments)

    async def tokens(self):
        return await self.run("() => client.state.tokenResponse")

    async def history(self):
        """The addresses that this window can go back to."""
        devtools = await self.context.new_cdp_session(self.page)
        told = await devtools.send("Page.getNavigationHistory")
        return [entry["url"] for entry in told["entries"]]
