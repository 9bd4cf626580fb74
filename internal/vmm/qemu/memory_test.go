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
