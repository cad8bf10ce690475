package cmd

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// guarded is one thing that a repository is to keep.
type guarded struct {
	id    string // hexadecimal
	label string // what people call it, or empty
}

func (g guarded) compare(o guarded) int {
	return cmp.Or(cmp.Compare(g.id, o.id), cmp.Compare(g.label, o.label))
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)

// String returns the line of a registration that tells of it, without its sign:
// the identifier, a space, and the label escaped as sha256sum(1) does.
func (g guarded) String() string { return g.id + " " + labelEscapes.Replace(g.label) }

// rootOf returns the RFC 6962 tree hash over the lines of all that is guarded, in
// ascending order, a leaf each: SHA256(0x00 || line).
func rootOf(all []guarded) archive.Digest {
	lines := make(archive.BlockList, 0, len(all))
	for _, g := range slices.SortedFunc(slices.Values(all), guarded.compare) {
		lines = append(lines, archive.DigestOf([]byte(g.String())))
	}
	return lines.Root()
}

const (
	guardFormat = "bonafide/guard/v1"
	// maxRegistration bounds one registration, in bytes.
	maxRegistration = 256 << 20
)

// registration is one registration: what came, and what went, since those before it.
type registration struct {
	name       archive.Name
	kind       string
	root       archive.Digest // of all that was there
	came, went []guarded
}

// bytes returns the registration's encoding.
func (v registration) bytes() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nkind %s\nroot %s\n", guardFormat, v.kind, v.root)
	for _, g := range v.went {
		fmt.Fprintf(&b, "-%s\n", g)
	}
	for _, g := range v.came {
		fmt.Fprintf(&b, "+%s\n", g)
	}
	return b.Bytes()
}

var (
	guardHead = regexp.MustCompile(`^` + guardFormat + `\nkind ([a-z]+)\nroot ([0-9a-f]{64})\n`)
	guardLine = regexp.MustCompile(`^([+-])([0-9a-f]+) (.*)$`)
)

// parseRegistration parses what bytes returns.
func parseRegistration(n archive.Name, b []byte) (registration, error) {
	m := guardHead.FindSubmatch(b)
	if m == nil {
		return registration{}, fmt.Errorf("%s: %w: no registration", quote(n), archive.ErrFormat)
	}
	v := registration{name: n, kind: string(m[1])}
	if err := v.root.UnmarshalText(m[2]); err != nil {
		return registration{}, err
	}
	for l := range strings.Lines(string(b[len(m[0]):])) {
		m := guardLine.FindStringSubmatch(strings.TrimSuffix(l, "\n"))
		if m == nil {
			return registration{}, fmt.Errorf("%s: %w: line %q", quote(n), archive.ErrFormat, l)
		}
		g := guarded{m[2], sumEscapes.Replace(m[3])}
		if m[1] == "+" {
			v.came = append(v.came, g)
		} else {
			v.went = append(v.went, g)
		}
	}
	if !bytes.Equal(v.bytes(), b) {
		return registration{}, fmt.Errorf("%s: %w: registration in another encoding", quote(n), archive.ErrFormat)
	}
	return v, nil
}

// registry is all that has been registered under one name.
type registry struct {
	versions []registration           // by time
	items    map[guarded]archive.Name // what came and did not go, and the version that says so last
	rec      archive.EpochRecord
	mas      string
}

// registered reads all registrations below n: a listing proven complete, and the
// content of each.
func registered(ctx context.Context, c *client.Client, kind string, n archive.Name) (*registry, error) {
	r := &registry{items: make(map[guarded]archive.Name), mas: string(c.Roster.Profile())}
	contents := make(map[archive.Name]archive.Content)
	var names []archive.Name
	rec, err := c.List(ctx, string(n)+"/", func(n archive.Name, e archive.Entry) error {
		names, contents[n] = append(names, n), e.Content
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.rec = rec
	for _, n := range names {
		v, err := fetchRegistration(ctx, c, n, contents[n])
		if err != nil {
			return nil, err
		}
		if v.kind != kind {
			return nil, usagef("%s is a registration of kind %s", quote(n), v.kind)
		}
		r.take(v)
	}
	return r, nil
}

func fetchRegistration(ctx context.Context, c *client.Client, n archive.Name, content archive.Content) (registration, error) {
	if content.Size > maxRegistration {
		return registration{}, fmt.Errorf("%s: %w: %d bytes", quote(n), archive.ErrFormat, content.Size)
	}
	var b bytes.Buffer
	if err := c.Fetch(ctx, content, &b); err != nil {
		return registration{}, fmt.Errorf("%s: %w", quote(n), err)
	}
	return parseRegistration(n, b.Bytes())
}

// take adds a version to those before it.
func (r *registry) take(v registration) {
	r.versions = append(r.versions, v)
	for _, g := range v.went {
		delete(r.items, g)
	}
	for _, g := range v.came {
		r.items[g] = v.name
	}
}

// next returns the registration that makes head what is registered, or nil if it
// is already. What is not in head any more has gone: it is kept by what came, or
// was accepted to be lost.
func (r *registry) next(kind string, head []guarded) []byte {
	v := registration{kind: kind, root: rootOf(head)}
	there := make(map[guarded]bool)
	for _, g := range slices.SortedFunc(slices.Values(head), guarded.compare) {
		there[g] = true
		if _, known := r.items[g]; !known {
			v.came = append(v.came, g)
		}
	}
	for g := range r.items {
		if !there[g] {
			v.went = append(v.went, g)
		}
	}
	slices.SortFunc(v.went, guarded.compare)
	if len(r.versions) > 0 && len(v.came)+len(v.went) == 0 {
		return nil
	}
	return v.bytes()
}
