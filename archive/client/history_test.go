package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

// old makes epochs 2 to 4 of a bed: more names than fit into the least page,
// nothing, and one name.
func (b *bed) old() {
	at := forge.Start.Add(12 * time.Hour)
	var many []archive.Binding
	for i := range 3 * leastPage {
		many = append(many, forge.Bind(archive.Name(fmt.Sprintf("many/%04d", i)), fmt.Sprint(i)))
	}
	b.Advance(at, nil, many...)
	b.Advance(at.Add(6*time.Hour), nil)
	b.Advance(at.Add(12*time.Hour), nil, forge.Bind("last", "last"))
	for _, f := range b.fakes {
		f.limit = leastPage
	}
}

func TestHistory(t *testing.T) {
	b := newBed(t, "", "first")
	b.old()
	var added []uint64
	var told uint64
	h, err := b.Client.History(t.Context(), HistoryOptions{
		Names: true,
		Step: func(s Step) error {
			if len(s.Certificate.Votes) != 3 || s.Record.Epoch != archive.Epoch(len(added)+1) {
				t.Errorf("step %+v", s)
			}
			added = append(added, s.Added)
			return nil
		},
		Checked: func(n, of uint64) { told = n },
	})
	want := uint64(3*leastPage + 2)
	if err != nil || h.Record.Head() != b.Newest().Record.Head() || h.Names != want || told != want || h.Replica == 0 {
		t.Errorf("%+v, %v; told of %d names", h, err, told)
	}
	if !slices.Equal(added, []uint64{1, 3 * leastPage, 0, 1}) {
		t.Errorf("added %v", added)
	}
	stop := errors.New("enough")
	if _, err := b.Client.History(t.Context(), HistoryOptions{Step: func(Step) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("a step that fails: %v", err)
	}
}

// A replica that goes on to another epoch while it lists its names is followed.
func TestHistoryGoesOn(t *testing.T) {
	b := newBed(t, "", "first")
	b.old()
	moved := false
	h, err := b.Client.History(t.Context(), HistoryOptions{Names: true, Checked: func(uint64, uint64) {
		if !moved {
			moved = true
			b.Advance(forge.Start.Add(30*time.Hour), nil, forge.Bind("many/0100x", "x"), forge.Bind("zz", "z"))
		}
	}})
	if err != nil || h.Record.Epoch != 4 || h.Names != 3*leastPage+2 {
		t.Errorf("%+v, %v", h, err)
	}
}

// What one replica shows of a history is refused, each lie for its own reason,
// and no other replica is asked.
func TestHistoryHostile(t *testing.T) {
	signed := func(w *forge.World, rec archive.EpochRecord, voters ...uint32) wire.SignedRecord {
		return wire.SignedRecord{Record: string(rec.Bytes()), Certificate: w.Certify(rec, 1, voters...).Bytes()}
	}
	edit := func(i int, change func(b *bed, s *wire.SignedRecord)) func(*bed, *fake) {
		return func(b *bed, f *fake) {
			f.lieHistory = func(page []wire.SignedRecord) []wire.SignedRecord {
				if i < len(page) {
					change(b, &page[i])
				}
				return page
			}
		}
	}
	without := func(name string) func(*bed, *fake) {
		return func(b *bed, f *fake) {
			f.liePage = func(tree.Proof) tree.Proof {
				t := new(tree.Memory)
				for _, p := range b.Newest().Tree.Pairs() {
					if string(p.Name) != name {
						t.Put(p.Name, p.Val)
					}
				}
				return t.ProveRange(nil, nil, 1000)
			}
		}
	}
	for _, x := range []struct {
		name string
		lie  func(*bed, *fake)
		want string
	}{
		{"forked record", edit(1, func(b *bed, s *wire.SignedRecord) {
			rec := b.Epochs[2].Record
			rec.Previous[3] ^= 1
			*s = signed(b.World, rec, 1, 2, 3)
		}), "epoch 2 does not verify: its record is not on top"},
		{"another record at the end", edit(3, func(b *bed, s *wire.SignedRecord) {
			rec := b.Epochs[4].Record
			rec.Names += 5
			*s = signed(b.World, rec, 1, 2, 3)
		}), "its device attests another record"},
		{"swapped certificate", edit(2, func(b *bed, s *wire.SignedRecord) { s.Certificate = b.Epochs[2].Certificate.Bytes() }), "epoch 3: certificate: commit vote"},
		{"repeated signer", edit(2, func(b *bed, s *wire.SignedRecord) { *s = signed(b.World, b.Epochs[3].Record, 2, 2, 3) }), "not by distinct replicas"},
		{"two signers", edit(2, func(b *bed, s *wire.SignedRecord) { *s = signed(b.World, b.Epochs[3].Record, 2, 3) }), "2 votes, want 3"},
		{"garbage record", edit(0, func(b *bed, s *wire.SignedRecord) { s.Record = "\x1b[2J" }), "epoch 1: does not verify"},
		{"garbage certificate", edit(0, func(b *bed, s *wire.SignedRecord) { s.Certificate = []byte{0} }), "epoch 1: does not verify"},
		{"missing epoch", func(b *bed, f *fake) {
			f.lieHistory = func(p []wire.SignedRecord) []wire.SignedRecord { return slices.Delete(p, 1, 2) }
		}, "epoch 2 does not verify: missing, the record of epoch 3"},
		{"cut off", func(b *bed, f *fake) {
			f.lieHistory = func(p []wire.SignedRecord) []wire.SignedRecord { return p[:min(2, max(0, len(p)-2))] }
		}, "epoch 3 does not verify: missing, its history ends before epoch 4"},
		{"a name left out", without("many/0005"), `names from "" on: does not verify`},
		{"the last name left out", without("many/0383"), `names from "" on: does not verify`},
		{"half a page", func(b *bed, f *fake) {
			f.liePage = func(p tree.Proof) tree.Proof { return p[:len(p)/2] }
		}, "does not verify"},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := newBed(t, "", "first")
			b.old()
			x.lie(b, b.fakes[0])
			h, err := b.Client.History(t.Context(), HistoryOptions{Names: true})
			refusedBy(t, err, 1, x.want)
			if h.Replica != 1 || b.fakes[1].count("history") > 0 {
				t.Errorf("%+v; another replica was asked", h)
			}
			if _, err := b.Client.History(t.Context(), HistoryOptions{Replica: 2, Names: true}); err != nil {
				t.Errorf("replica 2: %v", err)
			}
		})
	}
}

// Replicas that are there and do not answer cost no timeout each, and do not meddle
// with the walk that goes on without them.
func TestHistoryPastTheStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "first")
		b.stop(1, 2, 3)
		within(t, 4*hedge, func() {
			if h, err := b.Client.History(t.Context(), HistoryOptions{}); err != nil || h.Replica != 4 {
				t.Errorf("%+v, %v", h, err)
			}
		})
		stop := errors.New("enough")
		if _, err := b.Client.History(t.Context(), HistoryOptions{Step: func(Step) error { return stop }}); !errors.Is(err, stop) {
			t.Errorf("a step that fails: %v", err)
		}
		b.stop(4)
		within(t, b.Client.Timeout+4*hedge, func() {
			var none *NoQuorumError
			if _, err := b.Client.History(t.Context(), HistoryOptions{}); !errors.As(err, &none) || len(none.Replicas) != 4 {
				t.Errorf("all stopped: %v", err)
			}
		})
	})
}

func refusedBy(t *testing.T, err error, id int, want string) {
	t.Helper()
	if !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("replica %d: ", id)) {
		t.Errorf("got %v, want replica %d: %q", err, id, want)
	}
}

// Where 2f+1 devices certified what no correct replica would, a name that changed
// or went shows in the names that stand now.
func TestHistoryRewritten(t *testing.T) {
	for _, x := range []struct {
		name   string
		change func(t *tree.Memory, p tree.Pair)
		want   string
	}{
		{"rebound", func(t *tree.Memory, p tree.Pair) {
			e, _ := archive.ParseEntry(p.Val)
			e.Digest[0] ^= 1
			t.Put(p.Name, e.Bytes())
		}, "tree of epoch 1"},
		{"left out, another in its place", func(t *tree.Memory, p tree.Pair) {
			t.Put([]byte("other"), archive.Entry{Epoch: 2}.Bytes())
		}, "tree of epoch 1 does not verify: names were changed or removed since: those that stand now make 0 with"},
	} {
		b := newBed(t, "", "first")
		e := b.Fork(forge.Start.Add(12*time.Hour), b.IDs())
		e.Tree = new(tree.Memory)
		for _, p := range b.Newest().Tree.Pairs() {
			x.change(e.Tree, p)
		}
		e.Record.Root, e.Record.Names = e.Tree.Root(), e.Tree.Count()
		e.Certificate = b.Certify(e.Record, 1, 1, 2, 3)
		b.Epochs = append(b.Epochs, e)
		_, err := b.Client.History(t.Context(), HistoryOptions{Names: true})
		refusedBy(t, err, 1, x.want)
		if _, err := b.Client.History(t.Context(), HistoryOptions{}); err != nil {
			t.Errorf("%s: without names, the records are right: %v", x.name, err)
		}
	}
}

// A record whose root is not that of the names bound by then is told, though the
// names that stand in the end are right again.
func TestHistoryWrongRoot(t *testing.T) {
	b := newBed(t, "", "first")
	e := b.Fork(forge.Start.Add(12*time.Hour), b.IDs())
	e.Record.Root[0] ^= 1
	e.Certificate = b.Certify(e.Record, 1, 1, 2, 3)
	b.Epochs = append(b.Epochs, e)
	b.Advance(forge.Start.Add(18*time.Hour), nil, forge.Bind("last", "last"))
	_, err := b.Client.History(t.Context(), HistoryOptions{Names: true})
	refusedBy(t, err, 1, "tree of epoch 2")
}

// A replica that is down is passed over, one that shows less than what was
// accepted before is stale, and one that shows another record than that is told.
func TestHistorySeen(t *testing.T) {
	b := newBed(t, t.TempDir(), "first")
	b.old()
	b.fakes[0].err = wire.Errorf(wire.CodeMissing, "away")
	if h, err := b.Client.History(t.Context(), HistoryOptions{}); err != nil || h.Replica == 1 {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := b.Client.History(t.Context(), HistoryOptions{Replica: 1}); !errors.As(err, new(*NoQuorumError)) {
		t.Errorf("a replica that is away: %v", err)
	}
	if err := b.Client.seen.raise(mark{4, b.Newest().Record.Head()}); err != nil {
		t.Fatal(err)
	}
	b.fakes[1].behind = 2
	if _, err := b.Client.History(t.Context(), HistoryOptions{Replica: 2}); !errors.Is(err, ErrStale) {
		t.Errorf("a replica that is behind: %v", err)
	}
	c := b.client(t, t.TempDir())
	if err := c.seen.raise(mark{3, archive.Digest{1}}); err != nil {
		t.Fatal(err)
	}
	_, err := c.History(t.Context(), HistoryOptions{Replica: 3})
	refusedBy(t, err, 3, "was 0100000000000000000000000000000000000000000000000000000000000000 when it was first accepted")
}
