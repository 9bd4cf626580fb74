// Package portrate describes how much traffic a guest's NIC may have, as data. Up is from the
// guest, down is to it. Rates count frames, and the bits of Ethernet frames as they are on a wire,
// without preamble and checksum. A super-frame counts as its segments.
package portrate

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Limits of a Limit and of a burst.
const (
	MinBits, MaxBits       = 64_000, 1_000_000_000_000 // per second
	MinPackets, MaxPackets = 100, 1_000_000_000        // per second
	MinBurst, MaxBurst     = 16 << 10, 1 << 30         // bytes
)

// A Limit is how much may pass in one direction; 0 is no limit.
type Limit struct {
	Bits    uint64 // per second
	Packets uint64 // per second
}

// None is the word for no limit.
const None = "none"

// scales are the powers of 1000 that a rate may be written in, as tc(8) does.
var scales = []struct {
	suffix string
	factor uint64
}{{"t", 1e12}, {"g", 1e9}, {"m", 1e6}, {"k", 1e3}, {"", 1}}

// ParseLimit parses a rate: a number of bits per second with k, M, G or T (powers of 1000), a
// number of packets per second with pps, or both, such as "100M", "2.5Gbit", "20kpps" and
// "100M,20kpps". "none" is no limit.
func ParseLimit(text string) (l Limit, err error) {
	if text == None {
		return l, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		to, least, most := &l.Bits, uint64(MinBits), uint64(MaxBits)
		word := strings.ToLower(strings.TrimSpace(part))
		number, isPackets := strings.CutSuffix(word, "pps")
		switch {
		case isPackets:
			to, least, most = &l.Packets, MinPackets, MaxPackets
		case strings.HasSuffix(word, "bps"): // to tc these are bytes, and to others bits
			return l, fmt.Errorf("rate %q: want bits per second without a unit, such as 100M", part)
		default:
			number = strings.TrimSuffix(strings.TrimSuffix(word, "/s"), "bit")
		}
		n, err := scaled(number)
		switch {
		case err != nil:
			return l, fmt.Errorf("rate %q: want bits per second such as 100M, packets per second such as "+
				"20kpps, both (100M,20kpps), or none", part)
		case n < least || n > most:
			return l, fmt.Errorf("rate %q: want %s to %s", part, formatRate(least, isPackets),
				formatRate(most, isPackets))
		case *to != 0:
			return l, fmt.Errorf("rate %q: two of one kind (want one in bits, one in packets, or both)", text)
		}
		*to = n
	}
	return l, nil
}

// scaled parses a decimal number with k, m, g or t, in lower case.
func scaled(text string) (uint64, error) {
	for _, s := range scales {
		number, has := strings.CutSuffix(text, s.suffix)
		if !has {
			continue
		}
		if strings.Trim(number, "0123456789.") != "" {
			break
		}
		f, err := strconv.ParseFloat(number, 64)
		if err != nil || f*float64(s.factor) > math.MaxInt64 {
			break
		}
		return uint64(math.Round(f * float64(s.factor))), nil
	}
	return 0, errors.New("no number")
}

// formatRate writes a number of bits or packets per second with the largest factor that divides it.
func formatRate(n uint64, packets bool) string {
	text := ""
	for _, s := range scales {
		if n%s.factor == 0 {
			text = strconv.FormatUint(n/s.factor, 10) + s.suffix
			break
		}
	}
	if packets {
		return text + "pps"
	}
	return strings.NewReplacer("m", "M", "g", "G", "t", "T").Replace(text)
}

// String returns the limit as ParseLimit reads it.
func (l Limit) String() string {
	var parts []string
	if l.Bits != 0 {
		parts = append(parts, formatRate(l.Bits, false))
	}
	if l.Packets != 0 {
		parts = append(parts, formatRate(l.Packets, true))
	}
	if len(parts) == 0 {
		return None
	}
	return strings.Join(parts, ",")
}

// IsZero reports whether there is no limit.
func (l Limit) IsZero() bool { return l == Limit{} }

// MarshalText writes the limit as ParseLimit reads it.
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is ParseLimit.
func (l *Limit) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLimit(string(text))
	return err
}

// Within returns the limit, or what most allows of it: no limit at all is more than any.
func (l Limit) Within(most Limit) Limit {
	return Limit{Bits: within(l.Bits, most.Bits), Packets: within(l.Packets, most.Packets)}
}

func within(n, most uint64) uint64 {
	if most != 0 && (n == 0 || n > most) {
		return most
	}
	return n
}

// Config is the limits of a NIC. Its zero value has none.
type Config struct {
	Up    Limit  `json:"up,omitzero"`   // from the guest
	Down  Limit  `json:"down,omitzero"` // to the guest
	Burst uint64 `json:"burst,omitempty"`

	// Shape has frames over a rate in bits wait, at most those of 50 ms at that rate and 128 KiB
	// more, where they would be dropped otherwise.
	Shape bool `json:"shape,omitempty"`
}

// IsZero reports whether nothing is limited.
func (c Config) IsZero() bool { return c == Config{} }

// Validate checks the bounds.
func (c Config) Validate() error {
	for _, l := range []Limit{c.Up, c.Down} {
		if l.Bits != 0 && (l.Bits < MinBits || l.Bits > MaxBits) {
			return fmt.Errorf("rate of %d bit/s: want %d to %d", l.Bits, uint64(MinBits), uint64(MaxBits))
		}
		if l.Packets != 0 && (l.Packets < MinPackets || l.Packets > MaxPackets) {
			return fmt.Errorf("rate of %d packets per second: want %d to %d", l.Packets, MinPackets,
				uint64(MaxPackets))
		}
	}
	switch {
	case c.Burst != 0 && (c.Burst < MinBurst || c.Burst > MaxBurst):
		return fmt.Errorf("burst of %s: want %s to %s bytes", FormatBurst(c.Burst), FormatBurst(MinBurst),
			FormatBurst(MaxBurst))
	case c.Burst != 0 && c.Up.Bits == 0 && c.Down.Bits == 0:
		return errors.New("a burst needs a rate in bits (--burst with --rate-up or --rate-down)")
	case c.Shape && c.Up.Bits == 0 && c.Down.Bits == 0:
		return errors.New("only a rate in bits can be shaped (--shape with --rate-up or --rate-down)")
	}
	return nil
}

// String returns the limits for people, such as "rate-up:100M;rate-down:1G;burst:256k"; empty for
// none.
func (c Config) String() string {
	var words []string
	c.Encode(func(key, value string) {
		if key == keyUp || key == keyDown {
			key = "rate-" + key
		}
		words = append(words, key+":"+value)
	})
	return strings.Join(words, ";")
}

// A default burst has room for two super-frames, since each passes or is dropped whole. It also has
// room for what the rate allows while a TCP sender pauses: one that has lost all that it had in
// flight waits for its retransmission timer, at least 200 ms (BenchmarkLiveTCP in
// internal/kernel/ratelimit).
const (
	defaultBurst = 128 << 10              // bytes, at least
	defaultDepth = 250 * time.Millisecond // of the rate, at least
)

// A Bucket is a Limit with its burst.
type Bucket struct {
	Limit
	Burst uint64 // bytes that pass at once after an idle time; 0 without Bits
}

// UpBucket returns the limit from the guest with its burst.
func (c Config) UpBucket() Bucket { return c.bucket(c.Up) }

// DownBucket returns the limit to the guest with its burst.
func (c Config) DownBucket() Bucket { return c.bucket(c.Down) }

func (c Config) bucket(l Limit) Bucket {
	b := Bucket{Limit: l}
	switch {
	case l.Bits == 0:
	case c.Burst != 0:
		b.Burst = c.Burst
	default:
		depth := l.Bits / 8 * uint64(defaultDepth/time.Millisecond) / 1000
		b.Burst = min(max(defaultBurst, depth), MaxBurst)
	}
	return b
}

// BitDepth returns how long the burst lasts at the rate.
func (b Bucket) BitDepth() time.Duration {
	return time.Duration(float64(b.Burst) * 8 / float64(b.Bits) * float64(time.Second))
}

// PacketDepth returns for how long packets may be ahead of their rate.
func (b Bucket) PacketDepth() time.Duration { return defaultDepth }

// ParseBurst parses a number of bytes with k, M or G (powers of 1024, as tc(8) has them in sizes),
// with or without b.
func ParseBurst(text string) (uint64, error) {
	word := strings.TrimSuffix(strings.ToLower(text), "b")
	factor := uint64(1)
	for suffix, f := range map[string]uint64{"k": 1 << 10, "m": 1 << 20, "g": 1 << 30} {
		if number, has := strings.CutSuffix(word, suffix); has {
			word, factor = number, f
		}
	}
	n, err := strconv.ParseUint(word, 10, 32)
	if err != nil || n*factor < MinBurst || n*factor > MaxBurst {
		return 0, fmt.Errorf("want %s to %s bytes, such as 256k", FormatBurst(MinBurst),
			FormatBurst(MaxBurst))
	}
	return n * factor, nil
}

// FormatBurst writes a number of bytes as ParseBurst reads it.
func FormatBurst(n uint64) string {
	switch {
	case n%(1<<20) == 0:
		return strconv.FormatUint(n>>20, 10) + "M"
	case n%(1<<10) == 0:
		return strconv.FormatUint(n>>10, 10) + "k"
	}
	return strconv.FormatUint(n, 10)
}

// A super-frame has the headers of its segments once. Its bytes on the wire are estimated: each
// further segment has headers of Ethernet, IPv4 and TCP with timestamps. A guest can choose tiny
// segments, which are mostly headers: theirs are taken to be large (TinyHeaders).
const (
	SegmentHeaders = 14 + 20 + 32
	TinySegment    = 512 // bytes of payload; segments with less are tiny
	TinyHeaders    = 256
	MostHeaders    = 14 + 40 + 32 // of the first segment: what follows is cut
)

// MaxSegments bounds the segments of a super-frame. No guest comes near it. One with more would
// cost so much of a rate that its sender could send nothing else for long.
const MaxSegments = 1024

// Wire returns how many bytes and frames a frame of that length is on the wire. segment is the
// payload in bytes of each segment of a super-frame but the last; 0 for an ordinary frame.
func Wire(length, segment int) (bytes, frames int) {
	if segment <= 0 || segment > length || length+segment <= MostHeaders {
		return length, 1
	}
	frames = max(1, (length+segment-MostHeaders-1)/segment)
	headers := SegmentHeaders
	if segment < TinySegment {
		headers = TinyHeaders
	}
	return length + (frames-1)*headers, frames
}

// Keys of an alias.
const (
	keyUp    = "up"
	keyDown  = "down"
	keyBurst = "burst"
	keyShape = "shape"

	yes = "yes" // the value of keyShape
)

// Encode writes the rates' part of an alias.
func (c Config) Encode(add func(key, value string)) {
	if !c.Up.IsZero() {
		add(keyUp, c.Up.String())
	}
	if !c.Down.IsZero() {
		add(keyDown, c.Down.String())
	}
	if c.Burst != 0 {
		add(keyBurst, FormatBurst(c.Burst))
	}
	if c.Shape {
		add(keyShape, yes)
	}
}

// Set sets one field of an alias, and reports whether Encode writes such a value. It ignores a key
// that is not a rate's.
func (c *Config) Set(key, value string) bool {
	var err error
	switch key {
	case keyUp:
		c.Up, err = ParseLimit(value)
	case keyDown:
		c.Down, err = ParseLimit(value)
	case keyBurst:
		c.Burst, err = ParseBurst(value)
	case keyShape:
		c.Shape = value == yes
		return c.Shape
	}
	return err == nil
}
