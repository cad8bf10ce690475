package archive_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/tree"
)

// past returns a world of five epochs, the third of them empty, and its records
// from epoch 1 on.
func past() (*forge.World, []archive.EpochRecord) {
	w := forge.New(forge.Options{Seed: "past"})
	var records []archive.EpochRecord
	for e, n := range []int{1, 130, 0, 3, 70} {
		var bindings []archive.Binding
		for i := range n {
			bindings = append(bindings, forge.Bind(archive.Name(fmt.Sprintf("n/%03d/%d", i*7%131, e)), fmt.Sprint(e, i)))
		}
		records = append(records, w.Advance(forge.Start.Add(time.Duration(e)*time.Hour), nil, bindings...).Record)
	}
	return w, records
}

func refused(t *testing.T, what string, err error, want string) {
	t.Helper()
	if !errors.Is(err, archive.ErrIntegrity) || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

// A history is taken one epoch after the other, each on top of the one before,
// and nothing else.
func TestChain(t *testing.T) {
	w, _ := past()
	c := archive.NewChain(w.Roster)
	take := func(e forge.Epoch) error {
		_, _, err := c.Append(e.Record.Bytes(), e.Certificate.Bytes())
		return err
	}
	fork := func(change func(*archive.EpochRecord)) forge.Epoch {
		e := w.Epochs[2]
		change(&e.Record)
		e.Certificate = w.Certify(e.Record, 1, 1, 2, 3)
		return e
	}
	if err := take(w.Epochs[1]); err != nil {
		t.Fatal(err)
	}
	twice := w.Epochs[2]
	twice.Certificate = w.Certify(twice.Record, 1, 1, 2, 2)
	few := w.Epochs[2]
	few.Certificate = w.Certify(few.Record, 1, 1, 2)
	swapped := w.Epochs[2]
	swapped.Certificate = w.Epochs[1].Certificate
	for _, x := range []struct {
		name  string
		epoch forge.Epoch
		want  string
	}{
		{"missing", w.Epochs[3], "epoch 2 does not verify: missing, the record of epoch 3"},
		{"again", w.Epochs[1], "missing, the record of epoch 1"},
		{"forked", fork(func(r *archive.EpochRecord) { r.Previous[0] ^= 1 }), "not on top of the one before"},
		{"fewer names", fork(func(r *archive.EpochRecord) { r.Names = 0 }), "0 names, 1 before"},
		{"swapped certificate", swapped, "commit vote of replica 1"},
		{"repeated signer", twice, "not by distinct replicas"},
		{"two signers", few, "2 votes, want 3"},
		{"another archive", forge.New(forge.Options{Seed: "x"}).Advance(forge.Start, nil), "of another archive"},
	} {
		refused(t, x.name, take(x.epoch), x.want)
	}
	_, _, err := c.Append([]byte("garbage"), nil)
	refused(t, "garbage", err, "epoch 2")
	if c.Last().Epoch != 1 {
		t.Errorf("at epoch %d after what was refused", c.Last().Epoch)
	}
	for _, e := range w.Epochs[2:] {
		if err := take(e); err != nil {
			t.Error(err)
		}
	}
	if c.Last().Head() != w.Newest().Record.Head() {
		t.Errorf("ends at epoch %d", c.Last().Epoch)
	}
}

// Each epoch's root comes out of the names as they stand at the last one, however
// they are cut; and it does not once a name is another, or gone, or bound in
// another epoch.
func TestRewind(t *testing.T) {
	w, records := past()
	rewind := func(pairs []tree.Pair, n int, records []archive.EpochRecord) error {
		back := archive.NewRewind(records)
		for page := range slices.Chunk(pairs, n) {
			if err := back.Add(page); err != nil {
				return err
			}
		}
		return back.Check()
	}
	pairs := w.Newest().Tree.Pairs()
	for _, n := range []int{1, 7, 1000} {
		if err := rewind(pairs, n, records); err != nil {
			t.Error(err)
		}
	}
	if err := rewind(pairs, 50, records[:3]); err != nil {
		t.Errorf("with names of later epochs: %v", err)
	}
	change := func(i int, f func(*archive.Entry)) []tree.Pair {
		e, err := archive.ParseEntry(pairs[i].Val)
		if err != nil {
			t.Fatal(err)
		}
		f(&e)
		all := slices.Clone(pairs)
		all[i].Val = e.Bytes()
		return all
	}
	second := slices.IndexFunc(pairs, func(p tree.Pair) bool { return strings.HasSuffix(string(p.Name), "/1") })
	refused(t, "rebound", rewind(change(second, func(e *archive.Entry) { e.Digest[0] ^= 1 }), 50, records), "tree of epoch 2")
	refused(t, "left out", rewind(slices.Delete(slices.Clone(pairs), second, second+1), 50, records), "make 130 with root")
	refused(t, "said to be older", rewind(change(second, func(e *archive.Entry) { e.Epoch = 1 }), 50, records), "tree of epoch 1")
	refused(t, "said to be newer", rewind(change(second, func(e *archive.Entry) { e.Epoch = 3 }), 50, records), "tree of epoch 2")
	refused(t, "no entry", rewind([]tree.Pair{{Name: []byte("x"), Val: []byte("y")}}, 50, records), `entry of "x"`)
	refused(t, "out of order", rewind([]tree.Pair{pairs[1], pairs[0]}, 50, records), "listing")
	other := slices.Clone(records)
	other[3].Root[0] ^= 1
	refused(t, "another root", rewind(pairs, 50, other), "tree of epoch 4")
	other = slices.Clone(records)
	other[2].Names++
	refused(t, "another count", rewind(pairs, 50, other), "its record says 132")
}
