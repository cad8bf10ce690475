package replica

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
)

// Subset is one of several parts of all contents, each of which falls into one
// by its digest. The zero Subset is all of them.
type Subset struct{ Part, Of uint64 }

// ParseSubset parses "n/t": part n, from 1, of t. The empty string is all.
func ParseSubset(s string) (Subset, error) {
	if s == "" {
		return Subset{}, nil
	}
	part, of, _ := strings.Cut(s, "/")
	n, err1 := strconv.ParseUint(part, 10, 32)
	t, err2 := strconv.ParseUint(of, 10, 32)
	if err1 != nil || err2 != nil || n < 1 || n > t {
		return Subset{}, fmt.Errorf("%q: want n/t, with n from 1 to t", s)
	}
	return Subset{n, t}, nil
}

// String returns what ParseSubset parses.
func (s Subset) String() string {
	if s.Of == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", s.Part, s.Of)
}

// Has reports whether a content is in the subset.
func (s Subset) Has(d archive.Digest) bool {
	return s.Of == 0 || binary.BigEndian.Uint64(d[:8])%s.Of == s.Part-1
}

// listed is the contents that an audit is to check, and where they lie: so they
// can be read in the order of the disk. It has no names: those of the damaged
// ones are looked up again.
type listed struct {
	names []eachContent
	items []content.Item
	told  map[archive.Digest]bool  // missing, or damaged
	lost  map[archive.Digest]Event // of them, those not repaired, as told by one name
	worn  []worn
}

// worn is a content that waits for repair.
type worn struct {
	content archive.Content
	event   Event
}

const (
	// mendTogether is how many contents are repaired together: they come from
	// all peers at once, and the small ones share an fsync.
	mendTogether = 128
	// mendSmall and mendLarge are how many of them at a time.
	mendSmall, mendLarge = 32, 2
)

// eachContent calls a function with names and the contents that they are bound
// to.
type eachContent func(func(archive.Name, archive.Content) error) error

// list lists contents. It tells at once of those that are missing or have
// another size.
func (a *auditor) list(ctx context.Context, from eachContent) error {
	a.listed.names = append(a.listed.names, from)
	locate := a.store.contents.Locator()
	err := from(func(n archive.Name, c archive.Content) error {
		if !a.options.Subset.Has(c.Digest) || a.listed.told[c.Digest] {
			return ctx.Err()
		}
		size, place, err := locate(c.Digest)
		if err == nil && uint64(size) != c.Size {
			err = fmt.Errorf("%w: %d bytes, want %d", ErrDamaged, size, c.Size)
		}
		if err == nil {
			a.listed.items = append(a.listed.items, content.Item{Digest: c.Digest, Place: place, Size: size})
			return ctx.Err()
		}
		if !errors.Is(err, ErrMissing) && !errors.Is(err, ErrDamaged) {
			return fmt.Errorf("content of %q: %w", n, err) // nobody knows what it is
		}
		return a.wrong(ctx, n, c, err)
	})
	if err != nil {
		return err
	}
	return a.mendWorn(ctx)
}

// wrong tells of a damaged content, once, and has it repaired with others.
func (a *auditor) wrong(ctx context.Context, n archive.Name, c archive.Content, why error) error {
	if a.listed.told == nil {
		a.listed.told, a.listed.lost = make(map[archive.Digest]bool), make(map[archive.Digest]Event)
	}
	d := c.Digest
	e := Event{Kind: EventDamage, Part: PartContent, Name: n, Digest: &d, Detail: why.Error()}
	a.listed.told[d], a.listed.lost[d] = true, e
	if err := a.damage(ctx, e, nil); err != nil || !a.options.Repair {
		return err
	}
	a.listed.worn = append(a.listed.worn, worn{c, e})
	if len(a.listed.worn) < mendTogether {
		return nil
	}
	return a.mendWorn(ctx)
}

// mendWorn repairs the contents that wait for it, and tells what it came to.
func (a *auditor) mendWorn(ctx context.Context) error {
	all := a.listed.worn
	a.listed.worn = nil
	errs := make([]error, len(all))
	small, large := make(chan struct{}, mendSmall), make(chan struct{}, mendLarge)
	var wg sync.WaitGroup
	for i, w := range all {
		place := small
		if w.content.Size > content.Small {
			place = large
		}
		wg.Go(func() {
			place <- struct{}{}
			defer func() { <-place }()
			errs[i] = a.contents.restore(ctx, w.content)
		})
	}
	wg.Wait()
	for i, w := range all {
		if err := a.mended(ctx, w.event, errs[i]); err != nil {
			return err
		}
		e := w.event
		if errs[i] == nil {
			delete(a.listed.lost, *e.Digest)
			continue
		}
		e.Kind, e.Detail = EventUnrepaired, errs[i].Error()
		a.listed.lost[*e.Digest] = e
	}
	return ctx.Err()
}

// tellLost tells of the other names of each content that is lost.
func (a *auditor) tellLost(ctx context.Context) error {
	if len(a.listed.lost) == 0 {
		return nil
	}
	for _, each := range a.listed.names {
		err := each(func(n archive.Name, c archive.Content) error {
			if e, lost := a.listed.lost[c.Digest]; lost && e.Name != n {
				e.Name = n
				a.tell(e)
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pendingContents lists the contents that submissions wait to bind: the replica
// has acknowledged that it holds them.
func (a *auditor) pendingContents(ctx context.Context) error {
	var all []archive.Binding
	err := a.pending.Each(func(s archive.Submission) error {
		all = append(all, s.Bindings...)
		return nil
	})
	if errors.Is(err, ErrDamaged) {
		err = a.damage(ctx, Event{Part: PartPending, Detail: err.Error()}, a.renew)
	}
	if err != nil {
		return err
	}
	return a.list(ctx, func(fn func(archive.Name, archive.Content) error) error {
		for _, b := range all {
			if err := fn(b.Name, b.Content); err != nil {
				return err
			}
		}
		return nil
	})
}

// inOrder sorts the contents as they lie on the disk, each once.
func (l *listed) inOrder() []content.Item {
	slices.SortFunc(l.items, func(a, b content.Item) int {
		return cmp.Or(cmp.Compare(a.Place, b.Place), bytes.Compare(a.Digest[:], b.Digest[:]))
	})
	l.items = slices.CompactFunc(l.items, func(a, b content.Item) bool { return a.Digest == b.Digest })
	return l.items
}

// checkListed reads the contents that were listed, in the order of the disk.
func (a *auditor) checkListed(ctx context.Context) error {
	items := a.listed.inOrder()
	a.report.Contents = uint64(len(items))
	for _, it := range items {
		a.report.Bytes += uint64(it.Size)
	}
	a.report.Contents += uint64(len(a.listed.told))
	if a.shallow || len(items) == 0 {
		return nil
	}
	wrong := make(map[archive.Digest]error)
	mark := a.mark()
	done := 0
	err := a.store.contents.CheckAll(ctx, mark.first(items), content.Checking{
		Took:  a.pace.limit(),
		Wrong: func(it content.Item, err error) { wrong[it.Digest] = err },
		Passed: func(n int, last content.Item) {
			mark.passed(last.Place)
			if done += n; done/256 != (done-n)/256 || done == len(items) {
				a.progress(PartContent, uint64(done), uint64(len(items)), 1)
			}
		},
	})
	if err != nil {
		mark.save()
		return err
	}
	mark.clear()
	return a.named(ctx, wrong)
}

// named tells of damaged contents by their names. It reads the tree to its end even
// if it has told all: only there its root shows. A tree that turns out to be
// damaged then is read once more when it has been repaired.
func (a *auditor) named(ctx context.Context, wrong map[archive.Digest]error) error {
	readings := a.listed.names
	if a.options.Repair {
		readings = slices.Concat(readings, readings)
	}
	for _, each := range readings {
		if len(wrong) == 0 {
			break
		}
		err := each(func(n archive.Name, c archive.Content) error {
			why, ok := wrong[c.Digest]
			if !ok {
				return ctx.Err()
			}
			delete(wrong, c.Digest)
			return a.wrong(ctx, n, c, why)
		})
		if err != nil {
			return err
		}
	}
	for d, why := range wrong { // its row is gone
		if err := a.damage(ctx, Event{Part: PartContent, Digest: &d, Detail: why.Error()}, nil); err != nil {
			return err
		}
	}
	return a.mendWorn(ctx)
}

const (
	markFile  = "audit"
	markEvery = time.Minute
)

// mark is how far a replica's own audit of its contents has come, so that one
// that is often interrupted does not begin with the same ones each time. It says
// only where to begin: every audit that ends has read all of them.
type mark struct {
	store *Store // nil: none is kept
	place content.Place
	saved time.Time
}

// mark returns where to begin.
func (a *auditor) mark() *mark {
	m := &mark{saved: time.Now()}
	if !a.resume {
		return m
	}
	m.store = a.store
	if checkRegular(m.path()) != nil {
		return m
	}
	f, err := os.Open(m.path())
	if err != nil {
		return m
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 17))
	n, err := strconv.ParseUint(strings.TrimSuffix(string(b), "\n"), 16, 64)
	if err == nil {
		m.place = content.Place(n)
	}
	return m
}

func (m *mark) path() string { return filepath.Join(m.store.dir, markFile) }

// first returns the contents behind the mark, and then those before it.
func (m *mark) first(items []content.Item) []content.Item {
	i, _ := slices.BinarySearchFunc(items, m.place, func(it content.Item, p content.Place) int { return cmp.Compare(it.Place, p) })
	if i == 0 || i == len(items) {
		return items
	}
	return slices.Concat(items[i:], items[:i])
}

// passed moves the mark, and saves it now and then.
func (m *mark) passed(p content.Place) {
	m.place = p
	if time.Since(m.saved) > markEvery {
		m.save()
	}
}

// save keeps the mark. If that fails the next audit begins at another place.
func (m *mark) save() {
	if m.store == nil {
		return
	}
	m.saved = time.Now()
	m.store.putFile(m.path(), func(f *os.File) error {
		_, err := fmt.Fprintf(f, "%016x\n", uint64(m.place))
		return err
	})
}

// clear forgets the mark: the next audit begins at the beginning.
func (m *mark) clear() {
	if m.store != nil {
		os.Remove(m.path())
	}
}
