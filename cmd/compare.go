package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// What can come of comparing a file with its name.
const (
	isOK      = "OK"
	isFailed  = "FAILED"  // other content, or it cannot be read
	isMissing = "MISSING" // no such file here
	isUnknown = "UNKNOWN" // no such name in the archive
)

// comparison is one file and what it has to be, and then what came of it.
type comparison struct {
	Kind   string          `json:"kind"`
	Status string          `json:"status"`
	File   string          `json:"file"`
	Name   archive.Name    `json:"name,omitempty"`
	Digest *archive.Digest `json:"sha256,omitempty"` // that the name is bound to
	Bound  archive.Epoch   `json:"bound,omitempty"`
	Detail string          `json:"detail,omitempty"` // what is wrong

	want   archive.Content
	listed *archive.Digest // what a list of sums says
	unread bool            // it cannot be read
}

// against makes a comparison of a file with the entry of its name.
func against(path string, n archive.Name, e archive.Entry) *comparison {
	return &comparison{Kind: "verified", File: path, Name: n, Digest: &e.Digest, Bound: e.Epoch, want: e.Content}
}

// unknown is the comparison of a file whose name is proven absent.
func unknown(path string, n archive.Name) *comparison {
	return &comparison{Kind: "verified", Status: isUnknown, File: path, Name: n}
}

// passedOver is the comparison of what a walk has passed over: it can have no name
// in the archive, unless it could not be looked at.
func passedOver(path string, n archive.Name, err error) *comparison {
	c := unknown(cmp.Or(path, string(n)), n)
	c.Detail = err.Error()
	if !errors.Is(err, errIrregular) && !errors.Is(err, errTwin) && !errors.Is(err, archive.ErrName) {
		c.Status, c.unread = isFailed, true
	}
	return c
}

// run compares, and tells of the bytes it reads.
func (c *comparison) run(ctx context.Context, told func(n int)) {
	if c.Status != "" {
		return
	}
	have, err := hashFile(ctx, c.File, told)
	switch {
	case c.listed != nil && *c.listed != c.want.Digest:
		c.fail("the archive has other content than the list says")
	case errors.Is(err, fs.ErrNotExist):
		c.Status = isMissing
	case err != nil:
		c.unread = true
		c.fail(pathless(err).Error())
	case !have.of(c.want):
		c.fail("its sha256 is " + have.Digest.String())
	default:
		c.Status = isOK
	}
}

func (c *comparison) fail(detail string) { c.Status, c.Detail = isFailed, detail }

// tally prints comparisons and counts what came of them.
type tally struct {
	a *app
	v verifying

	told func(n int) // of bytes that are read; may be nil

	Kind       string        `json:"kind"`
	OK         uint64        `json:"ok"`
	Failed     uint64        `json:"failed"`
	Unreadable uint64        `json:"unreadable"` // of those that failed
	Missing    uint64        `json:"missing"`
	Unknown    uint64        `json:"unknown"`
	Epoch      archive.Epoch `json:"epoch"` // as of which the names are proven
	Time       time.Time     `json:"time"`
	MAS        string        `json:"mas"`
}

func (a *app) newTally(v verifying) *tally { return &tally{a: a, v: v, Kind: "summary"} }

// add counts a comparison and prints it.
func (t *tally) add(c *comparison) error {
	switch c.Status {
	case isOK:
		t.OK++
		if t.a.quiet {
			return nil
		}
	case isFailed:
		t.Failed++
		if c.unread {
			t.Unreadable++
		}
	case isMissing:
		if t.v.ignore {
			return nil
		}
		t.Missing++
	case isUnknown:
		t.Unknown++
	}
	if t.v.status {
		return nil
	}
	text := c.File + ": " + c.Status
	if c.Detail != "" {
		text += " (" + c.Detail + ")"
	}
	return t.a.result(c, "%s", text)
}

// abreast is how many comparisons go to a worker at a time: to hand one over takes
// as long as to hash a small file.
const abreast = 16

// compare runs what feed yields, at most n comparisons, and adds them in order.
func (t *tally) compare(ctx context.Context, n int, feed func(yield func(*comparison)) error) error {
	work := func(cs []*comparison) {
		for _, c := range cs {
			c.run(ctx, t.told)
		}
	}
	return inOrder(n/abreast+1, inLots(feed), work, func(cs []*comparison) error {
		return errors.Join(ctx.Err(), t.addAll(cs))
	})
}

// inLots feeds what feed yields in slices of abreast.
func inLots[T any](feed func(yield func(T)) error) func(yield func([]T)) error {
	return func(yield func([]T)) error {
		var lot []T
		err := feed(func(what T) {
			if lot = append(lot, what); len(lot) == abreast {
				yield(lot)
				lot = nil
			}
		})
		if len(lot) > 0 {
			yield(lot)
		}
		return err
	}
}

func (t *tally) addAll(cs []*comparison) (err error) {
	for _, c := range cs {
		err = cmp.Or(err, t.add(c))
	}
	return err
}

// end prints the count and returns what decides the exit status. rec is what the
// names are proven by, and err what ended the listing of them.
func (t *tally) end(c *client.Client, rec archive.EpochRecord, err error) error {
	t.Epoch, t.Time, t.MAS = rec.Epoch, rec.Time, string(c.Roster.Profile())
	if rec.Epoch > 0 && !t.v.status {
		t.a.say("%s OK, %d FAILED, %d MISSING here, %d UNKNOWN there; as of epoch %d of %s; MAS profile %s",
			count(t.OK, "file"), t.Failed, t.Missing, t.Unknown, rec.Epoch, clock(rec.Time), t.MAS)
		if err := t.a.message(t); err != nil {
			return err
		}
	}
	wrong := t.wrong(err)
	if t.v.status && wrong != nil && wrong != err {
		return &silentError{wrong}
	}
	return wrong
}

// wrong returns nil if all is right. What is proven to be wrong goes before what
// is not known, that before what is only missing.
func (t *tally) wrong(listing error) error {
	other := t.Failed - t.Unreadable
	switch {
	case other > 0:
		return fmt.Errorf("%w: %s not as bound", archive.ErrIntegrity, count(other, "file"))
	case t.Unreadable > 0:
		return fmt.Errorf("%s cannot be read", count(t.Unreadable, "file"))
	case listing != nil:
		return listing
	case t.Unknown > 0:
		return withStatus(exitAbsent, fmt.Errorf("%s not in the archive", count(t.Unknown, "file")))
	case t.Missing > 0:
		return withStatus(exitPartial, fmt.Errorf("%s missing here", count(t.Missing, "file")))
	case t.OK == 0:
		return withStatus(exitAbsent, errors.New("nothing to verify: no such name in the archive, no such file here"))
	}
	return nil
}
