package vswitch

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// prefixed returns frames as a stream has them.
func prefixed(frames ...[]byte) (all []byte) {
	for _, f := range frames {
		all = append(binary.BigEndian.AppendUint32(all, uint32(len(f))), f...)
	}
	return all
}

// unframed gives an unframer a stream in parts of at most that many bytes, and returns its frames
// and how many were too long. Frames must keep their data until the next batch.
func unframed(t testing.TB, stream []byte, part int) (got [][]byte, giants int, err error) {
	t.Helper()
	u := newUnframer()
	var batch [batchSize]frame
	for {
		n, err := u.take(batch[:])
		for _, f := range batch[:n] {
			switch {
			case f.lost == Giant:
				giants++
			case !bytes.Equal(f.data[:vnetLen], make([]byte, vnetLen)):
				t.Fatalf("a vnet header of %x", f.data[:vnetLen])
			default:
				got = append(got, bytes.Clone(f.ether()))
			}
		}
		if err != nil {
			return got, giants, err
		}
		if n > 0 {
			continue
		}
		if len(stream) == 0 {
			return got, giants, nil
		}
		k := copy(u.space(), stream[:min(part, len(stream))])
		u.end, stream = u.end+k, stream[k:]
	}
}

// TestUnframe cuts a stream of frames of all lengths anywhere.
func TestUnframe(t *testing.T) {
	var want [][]byte
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 13, 14, 60, 1514, maxCopy, maxCopy + 1, 9014, maxFrame} {
		for range 1 + random.IntN(100) {
			want = append(want, bytes.Repeat([]byte{byte(random.Int())}, size))
		}
	}
	random.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
	stream := prefixed(want...)
	for _, part := range []int{1009, 4096, 65536, 1 << 20} {
		got, giants, err := unframed(t, stream, part)
		if err != nil || giants != 0 || !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("in parts of %d: %d of %d frames, %d too long, %v", part, len(got), len(want), giants, err)
		}
	}
	got, _, err := unframed(t, prefixed(want[:20]...), 1)
	if err != nil || !slices.EqualFunc(got, want[:20], bytes.Equal) {
		t.Errorf("byte by byte: %d frames, %v", len(got), err)
	}
}

// TestUnframeHostileLengths: a frame too long costs itself, and what is no length ends the stream.
func TestUnframeHostileLengths(t *testing.T) {
	good := bytes.Repeat([]byte{7}, 60)
	stream := prefixed(good, make([]byte, maxFrame+1), good, make([]byte, maxSkip), good)
	for _, part := range []int{1000, 1 << 20} {
		got, giants, err := unframed(t, stream, part)
		if err != nil || giants != 2 || !slices.EqualFunc(got, [][]byte{good, good, good}, bytes.Equal) {
			t.Errorf("%d frames, %d too long, %v", len(got), giants, err)
		}
	}
	for _, size := range []uint32{maxSkip + 1, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
		got, giants, err := unframed(t, binary.BigEndian.AppendUint32(prefixed(good, good), size), 1<<20)
		if err == nil || giants != 0 || len(got) != 2 {
			t.Errorf("length %d: %d frames, %d too long, %v", size, len(got), giants, err)
		}
	}
}

// FuzzUnframe compares an unframer with a simple one that has the whole stream.
func FuzzUnframe(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02ab\x00\x00\x00\x00"), uint16(3))
	f.Add(prefixed(make([]byte, 1514), make([]byte, 60)), uint16(1000))
	f.Add([]byte("\x00\x02\x00\x00zz"), uint16(1))
	f.Add([]byte("\xff\xff\xff\xff"), uint16(9))
	f.Fuzz(func(t *testing.T, stream []byte, part uint16) {
		got, giants, err := unframed(t, stream, int(part)+1)
		var want [][]byte
		wantGiants, bad := 0, false
		for rest := stream; len(rest) >= prefixLen && !bad; {
			size := binary.BigEndian.Uint32(rest)
			rest = rest[prefixLen:]
			switch bad = size > maxSkip; {
			case bad:
			case size > maxFrame:
				wantGiants++
				rest = rest[min(len(rest), int(size)):]
			case int(size) > len(rest):
				rest = nil
			default:
				want, rest = append(want, rest[:size]), rest[size:]
			}
		}
		if !slices.EqualFunc(got, want, bytes.Equal) || giants != wantGiants || (err != nil) != bad {
			t.Errorf("%d frames, %d too long, %v: want %d, %d, %v", len(got), giants, err, len(want), wantGiants, bad)
		}
	})
}
