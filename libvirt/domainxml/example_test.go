package domainxml_test

import (
	"fmt"
	"log"
	"net"

	"vmnet/libvirt/domainxml"
)

func ExampleParse() {
	def, err := domainxml.Parse(`<domain type='kvm' id='3'>
  <name>web1</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <devices>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/>
      <source bridge='br0'/>
      <target dev='vnet0'/>
    </interface>
  </devices>
</domain>`)
	if err != nil {
		log.Fatal(err)
	}
	for _, nic := range def.Interfaces {
		fmt.Println(def.Name, nic.MAC, nic.Target, nic.Source.Bridge)
	}
	// Output: web1 52:54:00:00:00:01 vnet0 br0
}

func ExampleEthernet_XML() {
	nic := domainxml.Ethernet{
		Tap:    "tap0",
		MAC:    net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Queues: 2,
		Alias:  domainxml.UserAlias + "nic1",
	}
	element, err := nic.XML()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(element)
	// Output: <interface type="ethernet"><mac address="02:00:00:00:00:01"></mac><target dev="tap0" managed="no"></target><model type="virtio"></model><driver queues="2"></driver><alias name="ua-nic1"></alias></interface>
}
