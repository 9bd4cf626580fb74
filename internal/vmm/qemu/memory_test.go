package qemu

import (
	"strings"
	"testing"
)

func TestSharedMemory(t *testing.T) {
	const own = "-object memory-backend-memfd,id=vmnet-mem,size=%,share=on -machine memory-backend=vmnet-mem"
	add := func(size string) string { return strings.Replace(own, "%", size, 1) }
	for line, want := range map[string]string{ // what is added, or !error
		"":                                 add("128M"),
		"-m 512":                           add("512M"),
		"-m 1G,slots=2,maxmem=4G":          add("1G"),
		"-m size=2048 -numa cpu,node-id=0": add("2048M"),
		"-m slots=2,maxmem=4G":             add("128M"),
		"-m 1G -object rng-random,id=r -object memory-backend-memfd,id=d,size=1G -device pc-dimm,memdev=d": add("1G"),
		"-object memory-backend-memfd,id=m,size=1G -machine q35,memory-backend=m":                          "",
		"-M memory-backend=m -object memory-backend-file,id=m,size=1G,mem-path=/x,share=on":                "",
		"-object {\"qom-type\":\"memory-backend-file\",\"id\":\"m\",\"share\":true} -M memory-backend=m":   "",
		"-object memory-backend-file,id=m,size=1G,mem-path=/x -M memory-backend=m":                         "!\"m\" is private",
		"-object memory-backend-memfd,id=m,size=1G,share=off -M memory-backend=m":                          "!\"m\" is private",
		"-object memory-backend-ram,id=m,size=1G,share=on -M memory-backend=m":                             "!cannot map",
		"-object memory-backend-memfd,id=m,size=1G -numa node,memdev=m":                                    "",
		"-numa node,mem=512":                                     "!name it with memdev=",
		"-mem-path /dev/hugepages":                               "!mem-path=/dev/hugepages,share=on",
		"-M memory-backend=elsewhere":                            "!is no -object",
		"-object memory-backend-memfd,id=vmnet-mem,size=1G -m 1": "!is taken",
	} {
		args, err := SharedMemory(append([]string{"qemu-system-x86_64"}, strings.Fields(line)...))
		got := strings.Join(args, " ")
		if err != nil {
			got = "!" + err.Error()
		}
		text, refused := strings.CutPrefix(want, "!")
		if got != want && !(refused && err != nil && strings.Contains(got, text)) {
			t.Errorf("%s:\n%s, want\n%s", line, got, want)
		}
	}
}

func TestSurelyKVM(t *testing.T) {
	for line, want := range map[string]bool{
		"": false, "-enable-kvm": true, "-accel kvm": true, "-accel kvm,x=y -accel tcg": false,
		"-machine q35,accel=kvm": true, "-M accel=kvm:tcg": false, "-accel tcg": false, "-name accel kvm": false,
	} {
		if got := SurelyKVM(append([]string{"qemu-system-x86_64"}, strings.Fields(line)...)); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
}

func TestMayShare(t *testing.T) {
	for line, want := range map[string]string{ // empty: it may
		"qemu-system-x86_64 -m 512":                                               "",
		"qemu-system-x86_64 -M q35 -m 1G -drive file=/images/xenial.img":          "",
		"qemu-kvm -machine pc-q35-rhel9.4.0,accel=kvm":                            "",
		"qemu-system-x86_64 -M ubuntu-q35":                                        "",
		"qemu-system-x86_64 -M microvm":                                           "",
		"qemu-system-aarch64 -M virt-7.2":                                         "",
		"qemu-system-s390x":                                                       "",
		"qemu-system-ppc64":                                                       "",
		"qemu-system-x86_64 -M isapc":                                             "it is not known",
		"qemu-system-aarch64 -M raspi3b":                                          "it is not known",
		"qemu-system-x86_64 -mem-path /x":                                         "-mem-path makes memory",
		"qemu-system-x86_64 -m 1G,maxmem=4G":                                      "-m 1G,maxmem=4G has room",
		"qemu-system-x86_64 -m 1G,slots=2":                                        "has room for memory",
		"qemu-system-x86_64 -incoming tcp:0:1":                                    "with -incoming",
		"qemu-system-x86_64 --loadvm x":                                           "with -loadvm",
		"qemu-system-x86_64 -M q35,memory-encryption=sev0":                        "encrypted",
		"qemu-system-x86_64 -M q35,confidential-guest-support=tdx":                "encrypted",
		"qemu-system-x86_64 -global virtio-net-pci.iommu_platform=on":             "IOMMU",
		"qemu-system-x86_64 -M pc,accel=xen":                                      "Xen",
		"qemu-system-x86_64 -object memory-backend-file,id=m,size=1G,mem-path=/x": "is private",
	} {
		err := MayShare(strings.Fields(line))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}
