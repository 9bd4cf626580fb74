package skbdrops

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

const (
	tracepoint  = "kfree_skb"
	programName = "vmnet_drops" // of the program and its map
	// license is that of the program below, beside the project's own: the kernel lets programs read
	// its structures only under one that is compatible with the GPL (license_is_gpl_compatible in
	// include/linux/license.h).
	license = "Dual MIT/GPL"
)

// offsets are those of the kernel's own structures, and its names of reasons.
type offsets struct {
	dev, protocol  int16 // in struct sk_buff
	ifindex, ndNet int16 // in struct net_device
	inum           int16 // in struct net
	reasons        map[uint32]string
}

// kernelOffsets reads the type information of the running kernel.
func kernelOffsets() (o offsets, err error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return o, fmt.Errorf("read its type information: %w", err)
	}
	for _, f := range []struct {
		at   *int16
		name string
		path []string
	}{
		{&o.dev, "sk_buff", []string{"dev"}},
		{&o.protocol, "sk_buff", []string{"protocol"}},
		{&o.ifindex, "net_device", []string{"ifindex"}},
		{&o.ndNet, "net_device", []string{"nd_net", "net"}},
		{&o.inum, "net", []string{"ns", "inum"}},
	} {
		var s *btf.Struct
		if err := spec.TypeByName(f.name, &s); err != nil {
			return o, fmt.Errorf("struct %s: %w", f.name, err)
		}
		offset, ok := offsetOf(s, f.path)
		if !ok || offset > math.MaxInt16 {
			return o, fmt.Errorf("struct %s has no usable %s", f.name, strings.Join(f.path, "."))
		}
		*f.at = int16(offset)
	}
	var reasons *btf.Enum
	if err := spec.TypeByName("skb_drop_reason", &reasons); err != nil {
		return o, fmt.Errorf("enum skb_drop_reason: %w", err)
	}
	o.reasons = map[uint32]string{}
	for _, v := range reasons.Values {
		o.reasons[uint32(v.Value)] = strings.TrimPrefix(strings.TrimPrefix(v.Name, "SKB_DROP_REASON_"), "SKB_")
	}
	return o, nil
}

func (o *offsets) reason(n uint32) string {
	if name := o.reasons[n]; name != "" {
		return name
	}
	return strconv.FormatUint(uint64(n), 10)
}

// offsetOf finds a member, also in members without a name.
func offsetOf(t btf.Type, path []string) (bytes uint32, ok bool) {
	if len(path) == 0 {
		return 0, true
	}
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		rest := path
		switch m.Name {
		case path[0]:
			rest = path[1:]
		case "":
		default:
			continue
		}
		if below, ok := offsetOf(m.Type, rest); ok {
			return m.Offset.Bytes() + below, true
		}
	}
	return 0, false
}

// Offsets in the key of the map, on the stack.
const (
	keySize     = 24
	keyLink     = -keySize
	keyReason   = keyLink + 4
	keyPlace    = keyReason + 4
	keyProtocol = keyPlace + 8
	valueAt     = keyLink - 8
)

// Arguments of the tracepoint (include/trace/events/skb.h), of 8 bytes each.
const (
	argSKB    = 0
	argPlace  = 8
	argReason = 16
)

// program counts the drops of links of a network namespace. Its loads follow the kernel's own
// pointers, of which it knows the types, so that they need no helper.
func (o *offsets) program(ns uint32, links []int) asm.Instructions {
	const ctx, skb, dev, index, want = asm.R6, asm.R7, asm.R8, asm.R9, asm.R2
	p := asm.Instructions{
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(skb, ctx, argSKB, asm.DWord),
		asm.LoadMem(dev, skb, o.dev, asm.DWord),
		asm.JEq.Imm(dev, 0, "exit"),
		asm.LoadMem(index, dev, o.ifindex, asm.Word),
	}
	for _, l := range links {
		p = append(p, asm.JEq.Imm(index, int32(l), "ours"))
	}
	p = append(p,
		asm.Ja.Label("exit"),
		asm.LoadMem(asm.R1, dev, o.ndNet, asm.DWord).WithSymbol("ours"),
		asm.JEq.Imm(asm.R1, 0, "exit"),
		asm.LoadMem(asm.R1, asm.R1, o.inum, asm.Word),
		asm.LoadImm(want, int64(ns), asm.DWord),
		asm.JNE.Reg(asm.R1, want, "exit"),
		asm.StoreMem(asm.RFP, keyLink, index, asm.Word),
		asm.LoadMem(asm.R1, ctx, argReason, asm.DWord),
		asm.StoreMem(asm.RFP, keyReason, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, ctx, argPlace, asm.DWord),
		asm.StoreMem(asm.RFP, keyPlace, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, skb, o.protocol, asm.Half),
	)
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 { // little-endian: the protocol is in network byte order
		p = append(p, asm.HostTo(asm.BE, asm.R1, asm.Half))
	}
	count := asm.Instructions{
		asm.StoreMem(asm.RFP, keyProtocol, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, 0).WithReference(programName),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyLink),
		asm.FnMapLookupElem.Call(),
		asm.JNE.Imm(asm.R0, 0, "count"),
		asm.StoreMem(asm.RFP, valueAt, asm.R0, asm.DWord), // which is 0 here
		asm.LoadMapPtr(asm.R1, 0).WithReference(programName),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyLink),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, valueAt),
		asm.Mov.Imm(asm.R4, 1), // BPF_NOEXIST: another processor may have been faster
		asm.FnMapUpdateElem.Call(),
		asm.LoadMapPtr(asm.R1, 0).WithReference(programName),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyLink),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Imm(asm.R1, 1).WithSymbol("count"),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
	}
	return append(p, count...)
}
