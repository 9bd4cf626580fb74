"""Runs vmnet, whose results and messages are JSON, for the modules of docs/ansible."""

import json

ARGUMENTS = {
    "vmnet": {"type": "path", "default": "vmnet"},
    "netns": {"type": "str"},
}


class Vmnet:
    """The program vmnet, as the parameters of a module ask for it."""

    def __init__(self, module):
        self.module = module
        self.program = module.get_bin_path(module.params["vmnet"], required=True)

    def run(self, *args, data=None, failed=()):
        """Runs a verb and returns its result, None if it has printed none.

        A failure ends the module with vmnet's own words, unless the exit status is among failed.
        Notes become warnings.
        """
        command = [self.program, *args, "-o", "json"]
        if self.module.params["netns"]:
            command += ["--netns", self.module.params["netns"]]
        status, out, err = self.module.run_command(command, data=data)
        error = ""
        for line in err.splitlines():
            said = self.parse(line) if line.startswith("{") else {"error": line}
            if "note" in said:
                self.module.warn(said["note"])
            error = said.get("error", error)
        if status != 0 and status not in failed:
            self.module.fail_json(msg=error or "exit status %d" % status, cmd=command, rc=status)
        return self.parse(out) if out.strip() else None

    def parse(self, text):
        """Parses a result."""
        try:
            return json.loads(text)
        except ValueError:
            self.module.fail_json(msg="vmnet has printed no JSON: %.200s" % text)
