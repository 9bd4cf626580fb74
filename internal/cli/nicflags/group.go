package nicflags

import (
	"slices"

	"github.com/spf13/pflag"
)

// groupAnnotation is the annotation of a flag with the name of its group.
const groupAnnotation = "group"

// Group puts flags under a title of their own in help texts and man pages. It skips names that fs
// does not have: not every command has all flags of a NIC.
func Group(fs *pflag.FlagSet, title string, names ...string) {
	for _, name := range names {
		if fs.Lookup(name) != nil {
			_ = fs.SetAnnotation(name, groupAnnotation, []string{title})
		}
	}
}

// Section is a group of flags. The title is empty for flags without a group.
type Section struct {
	Title string
	Flags *pflag.FlagSet
}

// Sections returns the groups of a flag set in the order in which their first flags were defined,
// and then the flags without a group.
func Sections(fs *pflag.FlagSet) []Section {
	var all []Section
	rest := section("")
	sorted := fs.SortFlags
	fs.SortFlags = false
	defer func() { fs.SortFlags = sorted }()
	fs.VisitAll(func(f *pflag.Flag) {
		title := f.Annotations[groupAnnotation]
		if len(title) == 0 {
			rest.Flags.AddFlag(f)
			return
		}
		i := slices.IndexFunc(all, func(s Section) bool { return s.Title == title[0] })
		if i < 0 {
			i = len(all)
			all = append(all, section(title[0]))
		}
		all[i].Flags.AddFlag(f)
	})
	if rest.Flags.HasAvailableFlags() {
		all = append(all, rest)
	}
	return all
}

func section(title string) Section {
	fs := pflag.NewFlagSet(title, pflag.ContinueOnError)
	fs.SortFlags = title == ""
	return Section{title, fs}
}
