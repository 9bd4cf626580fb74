package brport

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxVLAN is the highest VLAN id; 0 and 4095 are reserved (IEEE 802.1Q, table 9-2).
const maxVLAN = 4094

// VLANRange is the range of VLANs from First to Last, both included.
type VLANRange struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

func (r VLANRange) validate() error {
	switch {
	case !validVLAN(r.First):
		return vlanError(r.First)
	case !validVLAN(r.Last):
		return vlanError(r.Last)
	case r.First > r.Last:
		return fmt.Errorf("VLANs %d-%d: want the lower number first", r.First, r.Last)
	}
	return nil
}

func validVLAN(id int) bool { return id >= 1 && id <= maxVLAN }

func vlanError(id int) error { return fmt.Errorf("VLAN %d: want 1 to %d", id, maxVLAN) }

// ParseVLANs parses a list of VLANs and ranges, such as "2-5,7", or "all", and returns it sorted
// and merged. Its errors match ErrInvalid with errors.Is.
func ParseVLANs(list string) ([]VLANRange, error) {
	ranges, err := parseVLANs(list)
	if err != nil {
		return nil, fmt.Errorf("%w port: %w", ErrInvalid, err)
	}
	return ranges, nil
}

func parseVLANs(list string) ([]VLANRange, error) {
	if list == "all" {
		return []VLANRange{{1, maxVLAN}}, nil
	}
	var ranges []VLANRange
	for item := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		var r VLANRange
		var err error
		if r.First, err = parseVLAN(first); err != nil {
			return nil, err
		}
		if r.Last, err = parseVLAN(last); err != nil {
			return nil, err
		}
		if err := r.validate(); err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return MergeVLANs(ranges), nil
}

func parseVLAN(s string) (int, error) {
	id, err := strconv.ParseUint(s, 10, 16)
	if err != nil || !validVLAN(int(id)) {
		return 0, fmt.Errorf("VLAN %q: want 1 to %d, in lists such as 2-5,7", s, maxVLAN)
	}
	return int(id), nil
}

// FormatVLANs returns the list that ParseVLANs parses, sorted and merged.
func FormatVLANs(ranges []VLANRange) string {
	var items []string
	for _, r := range MergeVLANs(ranges) {
		item := strconv.Itoa(r.First)
		if r.Last != r.First {
			item += "-" + strconv.Itoa(r.Last)
		}
		items = append(items, item)
	}
	return strings.Join(items, ",")
}

// MergeVLANs sorts ranges and joins those that overlap or touch.
func MergeVLANs(ranges []VLANRange) []VLANRange {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b VLANRange) int { return cmp.Compare(a.First, b.First) })
	var merged []VLANRange
	for _, r := range sorted {
		if n := len(merged); n > 0 && r.First <= merged[n-1].Last+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// WithoutVLANs returns ranges minus gone. Both must be sorted and merged.
func WithoutVLANs(ranges, gone []VLANRange) []VLANRange {
	var left []VLANRange
	for _, r := range ranges {
		for _, g := range gone {
			if g.Last < r.First || g.First > r.Last {
				continue
			}
			if g.First > r.First {
				left = append(left, VLANRange{r.First, g.First - 1})
			}
			r.First = g.Last + 1
		}
		if r.First <= r.Last {
			left = append(left, r)
		}
	}
	return left
}
