#!/usr/bin/python
"""Ansible module: the NICs of a guest."""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.vmnet import ARGUMENTS, Vmnet

DOCUMENTATION = r"""
module: vmnet_guest
short_description: The NICs of a guest
description:
  - Declares the NICs of a guest in its file, vmnet-guests(5), and gives them to the guest if it runs.
    Otherwise C(vmnet watch) does so when it starts.
  - NICs that vmnet has not made are never touched.
options:
  name: {type: str, required: true, description: The guest's name.}
  state:
    type: str
    choices: [present, absent]
    default: present
    description: With C(absent), vmnet's NICs are taken from the guest, and its file is removed.
  nics:
    type: dict
    description:
      - By id, the flags of C(vmnet attach) without their dashes, as in vmnet-guests(5).
      - Required if the state is C(present).
  user: {type: str, description: The user who runs the guest.}
  guests_dir: {type: path, default: /etc/vmnet/guests.d, description: The directory of the file.}
  timeout: {type: str, default: 30s, description: Give up a NIC after this time.}
  vmnet: {type: path, default: vmnet, description: The program.}
  netns: {type: str, description: The network namespace of bridges and taps.}
attributes: {check_mode: {support: full}, diff_mode: {support: full}}
"""

EXAMPLES = r"""
- vmnet_guest:
    name: web
    nics:
      net0: {network: lab, ip: 10.66.0.11}
      net1: {bridge: br0, vlan: 20, port-security: "mac,arp,nd,dhcp,ra,vlan"}
- vmnet_guest: {name: old, state: absent}
"""

RETURN = r"""
changes: {type: list, returned: always, description: As C(vmnet apply -o json) says.}
running: {type: bool, returned: always, description: Whether the guest runs.}
"""


def content(params):
    """Returns the guest's file, which is YAML as JSON is."""
    declared = {"vm": params["name"], "nics": params["nics"] or {}}
    if params["user"]:
        declared["user"] = params["user"]
    return json.dumps(declared, indent=2) + "\n"


def read(path):
    """Returns what a file has; None if there is none."""
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        return None


def write(module, path, text):
    """Replaces a file as a whole; None removes it."""
    if text is None:
        if os.path.exists(path):
            os.remove(path)
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = os.path.join(module.tmpdir, "guest.yaml")
    with open(new, "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(new, 0o644)
    module.atomic_move(new, path)


def main():
    """Runs the module."""
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            nics={"type": "dict"},
            user={"type": "str"},
            guests_dir={"type": "path", "default": "/etc/vmnet/guests.d"},
            timeout={"type": "str", "default": "30s"},
        ),
        required_if=[("state", "present", ("nics",))],
        supports_check_mode=True,
    )
    params, vmnet = module.params, Vmnet(module)
    if os.path.basename(params["name"]) != params["name"] or params["name"].startswith("."):
        module.fail_json(msg="name %s: a file has no such name" % params["name"])
    absent = params["state"] == "absent"
    if absent:
        params["nics"] = {}
    path = os.path.join(params["guests_dir"], params["name"] + ".yaml")
    before, text = read(path), content(params)
    after = None if absent else text
    dry = ["--dry-run"] if module.check_mode else []

    # The file comes last: one that vmnet refuses is not left for the guest's next start.
    done = vmnet.run("apply", "-f", "-", "--timeout", params["timeout"], *dry, data=text)[0]
    if before != after and not module.check_mode:
        write(module, path, after)
    module.exit_json(
        changed=before != after or bool(done["changes"]),
        changes=done["changes"],
        running=done["running"],
        diff={"before_header": path, "after_header": path, "before": before or "", "after": after or ""},
    )


if __name__ == "__main__":
    main()
