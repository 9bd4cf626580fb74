package testvm

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// cpioWriter writes the format "newc" of
// Documentation/driver-api/early-userspace/buffer-format.rst: for each file, the magic number and a
// header of 13 eight-digit hexadecimal fields, the name with a NUL, and the content, each padded to
// 4 bytes. All files belong to root.
type cpioWriter struct {
	buf   bytes.Buffer
	inode uint32
}

func (w *cpioWriter) dir(name string) { w.entry(name, unix.S_IFDIR|0o755, 0, nil) }

func (w *cpioWriter) file(name string, mode uint32, content []byte) {
	w.entry(name, unix.S_IFREG|mode, 0, content)
}

func (w *cpioWriter) symlink(name, target string) {
	w.entry(name, unix.S_IFLNK|0o777, 0, []byte(target))
}

func (w *cpioWriter) charDevice(name string, mode, major, minor uint32) {
	w.entry(name, unix.S_IFCHR|mode, unix.Mkdev(major, minor), nil)
}

// finish writes the trailer and returns the archive.
func (w *cpioWriter) finish() []byte {
	w.entry("TRAILER!!!", 0, 0, nil)
	return w.buf.Bytes()
}

func (w *cpioWriter) entry(name string, mode uint32, dev uint64, content []byte) {
	w.inode++
	links := uint32(1)
	if mode&unix.S_IFMT == unix.S_IFDIR {
		links = 2
	}
	w.buf.WriteString("070701")
	for _, field := range []uint32{
		w.inode, mode, 0, 0, links, 0, uint32(len(content)),
		0, 0, unix.Major(dev), unix.Minor(dev), uint32(len(name) + 1), 0,
	} {
		fmt.Fprintf(&w.buf, "%08X", field)
	}
	w.buf.WriteString(name)
	w.buf.WriteByte(0)
	w.pad()
	w.buf.Write(content)
	w.pad()
}

func (w *cpioWriter) pad() {
	for w.buf.Len()%4 != 0 {
		w.buf.WriteByte(0)
	}
}
