package arch

import (
	"cmp"
	"os"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"
)

// someone and noNoun find "of the guest's" where nothing follows that is the guest's.
const (
	someone = `(QEMU|vmnet|root|((a|an|the) \w+))`
	noNoun  = `([.,;:)]|$| (is|are|has|have|that|which|in|on|to|and|or|with|from|by|as)\b)`
)

// unwanted are words and phrases that do not come back, each with what docs/terms.md and the
// kernel's, QEMU's and libvirt's documentation say for it.
var unwanted = []struct {
	words, instead string
}{
	{`folders?`, "directory"},
	{`anew`, "again"},
	{`(is|are|was|were|be|been|being) told`, "learns, is passed, reports"},
	{`(tells?|telling) (whether|that|if|which|by|who|what)`, "reports whether, reports that, shows which"},
	{`told (that|by|of|apart)`, "reported, distinguished"},
	{`who(m|se)?ever`, "any process that, the owner"},
	{`whatever it is called`, "under any name"},
	{`of libvirt's`, "libvirt's X, X of libvirt"},
	{`of ` + someone + `'s( own)?` + noNoun, "the guest's X, X of the guest"},
	{`leads? nowhere`, "disconnected"},
	{`lets? go`, "releases, closes"},
	{`letting go`, "releasing, closing"},
	{`(is|are|was|were) none`, "is not a, there is no"},
	{`(to|can|cannot|could|may) be had`, "available"},
	{`in vain`, "without effect"},
	{`of no matter`, "does not matter"},
	{`for the asking`, "read-only, available"},
	{`(a|no|any|its|own|every|the|without|all|that|which|gives? up|\w+'s) rights`, "privilege, permission"},
	{`(a|no|any|own|every|without) right`, "privilege, permission"},
	{`rights? (of|to) (its|their|a|the)`, "privilege, permission"},
	{`(is|are|was) nobody's`, "unowned"},
	{`mute`, "disconnected, cannot send"},
	{`(makes?|made) (no )?sense`, "is valid, is consistent"},
	{`blanks?`, "space"},
	{`gives? back`, "restores, releases"},
	{`stands still`, "is paused, does not run"},
	{`believed?`, "trusts, trusted"},
	{`vouch(es)? for`, "trusts"},
	{`hearsay`, "untrusted report"},
	{`hand-?over is told`, "hand-over reports"},
	{`(that|which|who) (is|are) none of`, "not one of"},
	{`\w+(?-i: Is )([a-z]+\.)?Err\w+`, "matches ErrX with errors.Is"},
}

// quotations are phrases in which an unwanted word is the field's own, and texts of other programs.
var quotations = []string{
	"there is none", "There is none", "there are none", "there was none", "There was none", "there were none",
	"blank line", "Blank line",
}

// TestWordsThatDoNotComeBack looks into the comments, string literals and documents.
func TestWordsThatDoNotComeBack(t *testing.T) {
	for _, s := range sources(t) {
		if s.path == "internal/arch/words_test.go" || s.path == "CHANGELOG.md" {
			continue
		}
		all, err := s.passages()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			for word, instead := range unwantedIn(p.text) {
				t.Errorf("%s:%d: %q: write %q (docs/terms.md)", p.path, p.line, word, instead)
			}
		}
	}
}

var patterns = func() (all []*regexp.Regexp) {
	for _, u := range unwanted {
		all = append(all, regexp.MustCompile(`(?i)(?:^|[^\w-])(`+u.words+`)(?:$|[^\w-])`))
	}
	return all
}()

// needs has for each pattern texts in lower case of which what it matches contains one. To look for
// them takes much less time than to match the pattern.
var needs = func() (all [][]string) {
	for _, p := range patterns {
		re, err := syntax.Parse(p.String(), syntax.Perl)
		if err != nil {
			panic(err)
		}
		all = append(all, literals(re))
	}
	return all
}()

// literals returns texts of which what re matches contains one; nil if it may contain none. Of
// several such lists it returns the one whose shortest text is the longest.
func literals(re *syntax.Regexp) (best []string) {
	switch re.Op {
	case syntax.OpLiteral:
		return []string{strings.ToLower(string(re.Rune))}
	case syntax.OpCapture, syntax.OpPlus:
		return literals(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if l := literals(sub); shortest(l) > shortest(best) {
				best = l
			}
		}
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			l := literals(sub)
			if l == nil {
				return nil
			}
			best = append(best, l...)
		}
	}
	return best
}

func shortest(texts []string) int {
	if len(texts) == 0 {
		return 0
	}
	return len(slices.MinFunc(texts, func(a, b string) int { return cmp.Compare(len(a), len(b)) }))
}

// unwantedIn returns the unwanted words of a text, and what to write for each.
func unwantedIn(text string) map[string]string {
	for _, q := range quotations {
		text = strings.ReplaceAll(text, q, "")
	}
	found := map[string]string{}
	lower := strings.ToLower(text)
	for i, u := range unwanted {
		if needs[i] != nil && !containsAny(lower, needs[i]) {
			continue
		}
		if m := patterns[i].FindStringSubmatch(text); m != nil {
			found[m[1]] = u.instead
		}
	}
	return found
}

func containsAny(text string, parts []string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
}

func TestUnwantedIn(t *testing.T) {
	for text, want := range map[string]string{
		"a Folder that is":                 "Folder",
		"the answer, and anew":             "anew",
		"renew, folderless":                "",
		"it is told so":                    "is told",
		"the counters of a switch's ports": "",
		"an address of the guest's.":       "of the guest's.",
		"domains of libvirt's":             "of libvirt's",
	} {
		got := ""
		for word := range unwantedIn(text) {
			got += word
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestNeeds: the texts that are looked for first hide no match.
func TestNeeds(t *testing.T) {
	for i, u := range unwanted {
		if needs[i] == nil {
			t.Errorf("%s: nothing is known of what it matches, which takes long", u.words)
		}
	}
	for pattern, want := range map[string][]string{
		`folders?`: {"folder"}, `a?b*`: nil, `(Is|are) told`: {" told"}, `lets? go`: {"let"}, `x|y*`: nil,
		`(cat|mouse)`: {"cat", "mouse"},
	} {
		re, err := syntax.Parse(pattern, syntax.Perl)
		if got := literals(re); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", pattern, got, err, want)
		}
	}
}

// TestTerms counts the glossary's terms: one that nobody can learn in an hour is not read.
func TestTerms(t *testing.T) {
	text, err := os.ReadFile("../../docs/terms.md")
	if err != nil {
		t.Fatal(err)
	}
	terms := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		term, ok := strings.CutPrefix(line, "| ")
		term, _, _ = strings.Cut(term, " |")
		if !ok || term == "term" || term == "---" {
			continue
		}
		if terms[term] {
			t.Errorf("%q has two meanings", term)
		}
		terms[term] = true
	}
	if len(terms) < 40 || len(terms) > 60 {
		t.Errorf("docs/terms.md has %d terms, want 40 to 60", len(terms))
	}
}
