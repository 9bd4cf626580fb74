package pcapng

import (
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"vmnet/bridge/vswitch/capture"
	"vmnet/internal/cli/console"
)

// A File is a capture in the format pcapng (draft-ietf-opsawg-pcapng), which Wireshark reads. Each
// port has two interfaces, such as "tap0 in" and "tap0 out", since the library cannot write the
// direction of single frames. Each drop reason has an interface of its own.
type File struct {
	w     *pcapgo.NgWriter
	cfg   capture.Config
	begin time.Time
	ids   map[face]int
	count map[int]uint64 // number of frames by interface
}

// face identifies an interface of the file.
type face struct {
	port      int
	direction capture.Direction
	reason    string
}

// ofAll is the second half of the section's comment.
const ofAll = "Frames are shown as they passed: super-frames are whole, and checksums that " +
	"a vnet header leaves to the receiver are missing."

// NewFile begins the file of a capture. program is the program that writes it, with its version;
// place is what the frames are captured at, such as "switch sw0".
func NewFile(w io.Writer, program, place string, cfg capture.Config) (*File, error) {
	f := &File{cfg: cfg, begin: time.Now(), ids: map[face]int{}, count: map[int]uint64{}}
	for _, d := range []capture.Direction{capture.In, capture.Out} {
		if d == capture.In && cfg.Out && !cfg.In || d == capture.Out && cfg.In && !cfg.Out {
			continue
		}
		for port := range cfg.Ports {
			face := face{port: port, direction: d}
			if f.w != nil {
				if _, err := f.add(face); err != nil {
					return nil, err
				}
				continue
			}
			var err error
			f.w, err = pcapgo.NewNgWriterInterface(w, f.describe(face),
				pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
					Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: program,
					Comment: fmt.Sprintf("Captured at %s. %s", console.Clean(place), ofAll),
				}})
			if err != nil {
				return nil, err
			}
			f.ids[face] = 0
		}
	}
	return f, nil
}

func (f *File) describe(face face) pcapgo.NgInterface {
	name := fmt.Sprintf("%s %s", console.Clean(f.cfg.Ports[face.port]), face.direction)
	if face.reason != "" {
		name += ", dropped: " + console.Clean(face.reason)
	}
	return pcapgo.NgInterface{
		Name: name, OS: runtime.GOOS, LinkType: layers.LinkTypeEthernet,
		SnapLength: uint32(f.cfg.Snaplen),
	}
}

// maxReasons limits the interfaces for drop reasons. Further reasons are not written.
const maxReasons = 1024

func (f *File) add(face face) (int, error) {
	if face.reason != "" && len(f.ids) > maxReasons+2*len(f.cfg.Ports) {
		face.reason = ""
	}
	if id, ok := f.ids[face]; ok {
		return id, nil
	}
	id, err := f.w.AddInterface(f.describe(face))
	f.ids[face] = id
	return id, err
}

// Write adds a frame.
func (f *File) Write(c capture.Frame) error {
	if c.Port >= len(f.cfg.Ports) {
		return fmt.Errorf("a frame of port %d of %d", c.Port, len(f.cfg.Ports))
	}
	face := face{port: c.Port, direction: c.Direction}
	if f.cfg.Drops {
		face.reason = c.Reason
	}
	id, err := f.add(face)
	if err != nil {
		return err
	}
	f.count[id]++
	return f.w.WritePacket(gopacket.CaptureInfo{
		Timestamp: c.Time, CaptureLength: len(c.Data), Length: c.Length,
		InterfaceIndex: id,
	}, c.Data)
}

// Flush writes what is still in memory.
func (f *File) Flush() error { return f.w.Flush() }

// Finish writes the numbers of captured and lost frames, and flushes. Without it the file is valid
// too.
func (f *File) Finish(totals []capture.Totals) error {
	lost := map[face]uint64{}
	for _, t := range totals {
		lost[face{port: t.Port, direction: t.Direction}] = t.Lost
	}
	now := time.Now()
	for face, id := range f.ids {
		err := f.w.WriteInterfaceStats(id, pcapgo.NgInterfaceStatistics{
			LastUpdate: now, StartTime: f.begin, EndTime: now,
			PacketsReceived: f.count[id] + lost[face], PacketsDropped: lost[face],
		})
		if err != nil {
			return err
		}
	}
	return f.w.Flush()
}
