package cmd

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// sumLine is one line of a list of digests.
type sumLine struct {
	digest archive.Digest
	path   string       // relative to where the list says
	name   archive.Name // of the file; perhaps not a valid one
}

// maxSumLine bounds a line of a list, in bytes: a path of the greatest length that
// Linux has, each byte escaped, and a digest.
const maxSumLine = 16 << 10

// readSums reads a list of SHA-256 digests as sha256sum(1) writes it, with and
// without --tag, or, if bag, a manifest of RFC 8493, section 2.1.3.
func readSums(r io.Reader, bag bool) (lines []sumLine, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxSumLine)
	for n := 1; s.Scan(); n++ {
		text := strings.TrimSuffix(s.Text(), "\r")
		if text == "" || text[0] == '#' && !bag {
			continue
		}
		l, ok := parseSum(text, bag)
		if !ok {
			return nil, fmt.Errorf("%w: line %d is no SHA-256 digest and path", archive.ErrFormat, n)
		}
		lines = append(lines, l)
	}
	if errors.Is(s.Err(), bufio.ErrTooLong) {
		return nil, fmt.Errorf("%w: line %d is over %d bytes", archive.ErrFormat, len(lines)+1, maxSumLine)
	}
	return lines, s.Err()
}

var (
	plainSum = regexp.MustCompile(`^([0-9a-fA-F]{64}) [ *](.+)$`)
	tagSum   = regexp.MustCompile(`^SHA256 \((.+)\) = ([0-9a-fA-F]{64})$`)
	bagSum   = regexp.MustCompile(`^([0-9a-fA-F]{64})[ \t]+\*?(.+)$`)

	sumEscapes = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r")
	bagEscapes = strings.NewReplacer("%0A", "\n", "%0a", "\n", "%0D", "\r", "%0d", "\r", "%25", "%")
)

// parseSum parses one line. A backslash before it says that the path is escaped.
func parseSum(text string, bag bool) (l sumLine, ok bool) {
	digest, path := "", ""
	rest, escaped := strings.CutPrefix(text, `\`)
	if m := bagSum.FindStringSubmatch(text); bag && m != nil {
		digest, path = m[1], bagEscapes.Replace(m[2])
	} else if m := plainSum.FindStringSubmatch(rest); !bag && m != nil {
		digest, path = m[1], m[2]
	} else if m := tagSum.FindStringSubmatch(rest); !bag && m != nil {
		digest, path = m[2], m[1]
	}
	if escaped && !bag {
		path = sumEscapes.Replace(path)
	}
	n, err := hex.Decode(l.digest[:], []byte(digest))
	l.path = path
	return l, err == nil && n == len(l.digest)
}

// manifestName is what a bag's manifests are called; the algorithm stands in it.
var manifestName = regexp.MustCompile(`^(tag)?manifest-([0-9a-z-]+)\.txt$`)

// loadSums reads the list in a file, or on stdin, and says where its paths begin.
func (a *app) loadSums(file string) (lines []sumLine, base string, err error) {
	m := manifestName.FindStringSubmatch(filepath.Base(file))
	if m != nil && m[2] != "sha256" {
		return nil, "", withHint(usagef("its digests are %s", m[2]), "only SHA-256 can be compared; make a manifest-sha256.txt")
	}
	if m != nil {
		base = filepath.Dir(file)
	}
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, "", unreadable(err)
		}
		defer f.Close()
		in = f
	}
	lines, err = readSums(in, m != nil)
	if err == nil && len(lines) == 0 {
		err = fmt.Errorf("%w: no digests in it", archive.ErrFormat)
	}
	if err != nil {
		return nil, "", withStatus(exitUsage, err)
	}
	return lines, base, nil
}

// verifySums compares the files of a list, the list and the archive.
func (a *app) verifySums(ctx context.Context, v verifying, arg string) error {
	prefix, err := a.parsePrefix(arg)
	if err != nil {
		return err
	}
	lines, base, err := a.loadSums(v.sums)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer c.Close()
	names := make(map[archive.Name]*archive.Entry)
	for i := range lines {
		l := &lines[i]
		l.name, _ = archive.NormalizeName(string(below(prefix, filepath.Clean(l.path))))
		names[l.name] = nil
	}
	rec, err := entries(ctx, c, names)
	if err != nil && !errors.Is(err, client.ErrStale) {
		return err
	}
	t := a.newTally(v)
	if done := t.compareSums(ctx, lines, base, names, err == nil); done != nil {
		return done
	}
	return t.end(c, rec, err)
}

// compareSums compares each line with the entry of its name. That a name is
// unknown it says only if the archive's word on that is current.
func (t *tally) compareSums(ctx context.Context, lines []sumLine, base string, names map[archive.Name]*archive.Entry, current bool) error {
	var all []*comparison
	for _, l := range lines {
		path := filepath.Join(base, l.path)
		if e := names[l.name]; e != nil {
			c := against(path, l.name, *e)
			c.listed = &l.digest
			all = append(all, c)
		} else if current {
			all = append(all, unknown(path, l.name))
		}
	}
	return t.compare(ctx, len(all), eachOf(all))
}

// fewNames is for how many names a proof each is asked for: for more, a listing
// is quicker.
const fewNames = 256

// entries sets the entries of names that are bound, nil for those proven absent.
// What can be no name stays nil.
func entries(ctx context.Context, c *client.Client, names map[archive.Name]*archive.Entry) (archive.EpochRecord, error) {
	if len(names) > fewNames {
		return c.List(ctx, commonPrefix(names), func(n archive.Name, e archive.Entry) error {
			if _, asked := names[n]; asked {
				names[n] = &e
			}
			return nil
		})
	}
	return entriesByProofs(ctx, c, names)
}

func entriesByProofs(ctx context.Context, c *client.Client, names map[archive.Name]*archive.Entry) (rec archive.EpochRecord, err error) {
	results, err := c.Get(ctx, validNames(names)...)
	if err != nil {
		return rec, err
	}
	for _, r := range results {
		rec = r.Record
		if r.Err == nil {
			names[r.Name] = &r.Entry
		} else if !errors.As(r.Err, new(*client.AbsentError)) {
			err = r.Err
		}
	}
	return rec, err
}

func validNames(names map[archive.Name]*archive.Entry) (all []archive.Name) {
	for n := range names {
		if n.Check() == nil {
			all = append(all, n)
		}
	}
	return all
}

// commonPrefix returns what all valid names begin with, up to a slash.
func commonPrefix(names map[archive.Name]*archive.Entry) string {
	all := validNames(names)
	if len(all) == 0 {
		return ""
	}
	first, last := string(slices.Min(all)), string(slices.Max(all))
	n := 0
	for n < len(first) && n < len(last) && first[n] == last[n] {
		n++
	}
	return first[:strings.LastIndexByte(first[:n], '/')+1]
}
