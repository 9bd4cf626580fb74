#!/usr/bin/python
"""Ansible module: networks for guests."""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.vmnet import ARGUMENTS, Vmnet

DOCUMENTATION = r"""
module: vmnet_network
short_description: Networks for guests, with NAT, DHCP and DNS
description:
  - Makes a network of C(vmnet network), restores one that is not as its file says, or deletes it.
  - A network that is there and differs from the parameters is refused, since its guests use it.
options:
  name: {type: str, required: true, description: The network's name.}
  state: {type: str, choices: [present, absent], default: present, description: Whether it is there.}
  subnet: {type: str, description: The IPv4 network. The default is a free one.}
  ipv6: {type: str, description: The IPv6 network, C(none) or C(auto).}
  domain: {type: str, description: The domain of the guests' names.}
  mtu: {type: int, description: In bytes.}
  nat: {type: bool, default: false, description: Guests reach other networks by the host.}
  dhcp: {type: bool, default: false, description: A server gives guests addresses and names.}
  isolated: {type: bool, default: false, description: Guests do not reach each other.}
  integrate: {type: bool, default: false, description: Docker, firewalld and ufw let it pass.}
  hosts:
    type: list
    elements: dict
    description: Guests that always have this C(name) and C(ip), known by their C(mac).
  config_dir: {type: path, description: The directory of the networks' files.}
  state_dir: {type: path, description: The directory of the servers' leases.}
  vmnet: {type: path, default: vmnet, description: The program.}
  netns: {type: str, description: The network namespace.}
attributes: {check_mode: {support: full}}
"""

EXAMPLES = r"""
- vmnet_network: {name: lab, nat: true, dhcp: true, subnet: 10.66.0.0/24}
- vmnet_network: {name: old, state: absent}
"""

RETURN = r"""
network: {type: dict, returned: if it is there, description: As C(vmnet network show -o json) says.}
"""

TEXTS = ("subnet", "ipv6", "domain", "mtu")
SWITCHES = ("nat", "dhcp", "isolated", "integrate")
HOST = {
    "name": {"type": "str", "required": True},
    "mac": {"type": "str", "required": True},
    "ip": {"type": "str"},
}


def flags(params):
    """Returns the flags of vmnet network create."""
    args = []
    for key in TEXTS:
        if params[key] is not None:
            args.append("--%s=%s" % (key, params[key]))
    args += ["--" + key for key in SWITCHES if params[key]]
    for host in params["hosts"] or []:
        args.append("--host=%s=%s" % (host["name"], ",".join(filter(None, (host["mac"], host["ip"])))))
    return args


def differences(params, found):
    """Names what the network has otherwise than the parameters."""
    wanted = {key: params[key] for key in SWITCHES}
    for key in ("subnet", "domain", "mtu"):
        if params[key] is not None:
            wanted[key] = params[key]
    if params["ipv6"] not in (None, "auto"):
        wanted["ipv6"] = None if params["ipv6"] == "none" else params["ipv6"]
    if params["hosts"] is not None:
        wanted["hosts"] = [{k: v for k, v in host.items() if v} for host in params["hosts"]]
    return [
        "%s: want %s, found %s" % (key, value, found.get(key))
        for key, value in wanted.items()
        if found.get(key) != value
    ]


def main():
    """Runs the module."""
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            hosts={"type": "list", "elements": "dict", "options": HOST},
            config_dir={"type": "path"},
            state_dir={"type": "path"},
            **{key: {"type": "int" if key == "mtu" else "str"} for key in TEXTS},
            **{key: {"type": "bool", "default": False} for key in SWITCHES},
        ),
        supports_check_mode=True,
    )
    params, vmnet = module.params, Vmnet(module)
    name = params["name"]
    where = ["--%s=%s" % (key.replace("_", "-"), params[key]) for key in ("config_dir", "state_dir") if params[key]]
    dry = ["--dry-run"] if module.check_mode else []
    there = any(n["network"] == name for n in vmnet.run("network", "list", *where))

    if params["state"] == "absent":
        if there:
            vmnet.run("network", "delete", name, *where, *dry)
        module.exit_json(changed=there)
    if not there:
        vmnet.run("network", "create", name, *flags(params), *where, *dry)
        found = {} if module.check_mode else vmnet.run("network", "show", name, *where)
        module.exit_json(changed=True, network=found)
    found = vmnet.run("network", "show", name, *where)
    if wrong := differences(params, found):
        module.fail_json(
            msg="network %s is there and differs: %s (change its file and run vmnet network apply %s, "
            "or delete it first: state absent)" % (name, "; ".join(wrong), name)
        )
    done = vmnet.run("network", "apply", name, *where, *dry)
    # A dry run that would change something prints the network's steps, another one a list.
    changed = any(n.get("changed") or n.get("steps") for n in (done if isinstance(done, list) else [done]))
    if changed and not module.check_mode:
        found = vmnet.run("network", "show", name, *where)
    module.exit_json(changed=changed, network=found)


if __name__ == "__main__":
    main()
