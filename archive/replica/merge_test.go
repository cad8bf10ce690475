package replica

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

// list is a body in memory.
type list []archive.Submission

func (l *list) next() (b []byte, d archive.Digest, err error) {
	if len(*l) == 0 {
		return nil, d, io.EOF
	}
	b, *l = (*l)[0].Bytes(), (*l)[1:]
	return b, archive.DigestOf(b), nil
}

func openers(bodies [][]archive.Submission) (all []opener) {
	for _, b := range bodies {
		all = append(all, func() proposalBody { l := list(b); return &l })
	}
	return all
}

// merged returns what merge adds, all at once.
func merged(r *archive.Roster, e archive.Epoch, at time.Time, bodies [][]archive.Submission, old rows) (all []tree.Pair, err error) {
	a, err := merge(context.Background(), r, e, at, openers(bodies), old)
	if err != nil {
		return nil, err
	}
	err = a.each(func(some []tree.Pair) error { all = append(all, some...); return nil })
	return all, err
}

// sortedBody returns the submissions as a body holds them.
func sortedBody(subs []archive.Submission) []archive.Submission {
	subs = slices.Clone(subs)
	byDigest := func(a, b archive.Submission) int { return cmp.Compare(a.Digest().String(), b.Digest().String()) }
	slices.SortFunc(subs, byDigest)
	return slices.CompactFunc(subs, func(a, b archive.Submission) bool { return byDigest(a, b) == 0 })
}

func rowsOf(pairs []tree.Pair) rows {
	return func(_ context.Context, from []byte, fn func(name, val []byte) error) error {
		for _, p := range pairs {
			if string(p.Name) < string(from) {
				continue
			}
			if err := fn(p.Name, p.Val); err != nil {
				return err
			}
		}
		return nil
	}
}

// naive says, for each name alone and with no regard for time and memory, what
// merge must give.
func naive(r *archive.Roster, e archive.Epoch, at time.Time, bodies [][]archive.Submission, old []tree.Pair) map[string]string {
	count := map[archive.Digest]int{}
	in := map[archive.Digest]map[int]bool{}
	byDigest := map[archive.Digest]archive.Submission{}
	for i, b := range bodies {
		for _, s := range b {
			d := s.Digest()
			count[d]++
			byDigest[d] = s
			if in[d] == nil {
				in[d] = map[int]bool{}
			}
			in[d][i] = true
		}
	}
	var order []archive.Digest
	for d, s := range byDigest {
		w, err := r.Admit(s.Archive, s.Writer)
		if err == nil && w.Permitted(s) == nil && s.Fresh(at, r.Limits.SubmissionAge.Std()) == nil {
			order = append(order, d)
		}
	}
	slices.SortFunc(order, func(a, b archive.Digest) int {
		return cmp.Or(count[b]-count[a], byDigest[a].Created.Compare(byDigest[b].Created), strings.Compare(a.String(), b.String()))
	})
	names, bytes := map[archive.KeyID]uint64{}, map[archive.KeyID]uint64{}
	votes := map[string]map[string]map[int]bool{} // name, value, proposals
	for _, d := range order {
		s := byDigest[d]
		w, _ := r.Admit(s.Archive, s.Writer)
		n, b := names[s.Writer]+uint64(len(s.Bindings)), bytes[s.Writer]+s.Size()
		if n > w.Names || b > w.Bytes {
			continue
		}
		names[s.Writer], bytes[s.Writer] = n, b
		for _, x := range s.Bindings {
			val := string(archive.Entry{Content: x.Content, Writer: s.Writer, Epoch: e}.Bytes())
			if votes[string(x.Name)] == nil {
				votes[string(x.Name)] = map[string]map[int]bool{}
			}
			if votes[string(x.Name)][val] == nil {
				votes[string(x.Name)][val] = map[int]bool{}
			}
			for i := range in[d] {
				votes[string(x.Name)][val][i] = true
			}
		}
	}
	won := map[string]string{}
	for name, vals := range votes {
		for val, by := range vals {
			best, ok := won[name]
			if !ok || len(by) > len(vals[best]) || len(by) == len(vals[best]) && val < best {
				won[name] = val
			}
		}
	}
	for _, p := range old {
		delete(won, string(p.Name))
	}
	return won
}

// mergeRoster has three writers: one for all names, one for a prefix, one with
// little quota.
func mergeRoster() (*archive.Roster, []ed25519.PrivateKey) {
	r := &archive.Roster{Limits: archive.DefaultLimits()}
	var keys []ed25519.PrivateKey
	for i, w := range []archive.Writer{{Names: 100, Bytes: 1000}, {Names: 100, Bytes: 1000, Prefixes: []string{"a"}}, {Names: 3, Bytes: 20}} {
		key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{byte(i)}, ed25519.SeedSize))
		w.Key = archive.PublicKey(key.Public().(ed25519.PublicKey))
		r.Writers, keys = append(r.Writers, w), append(keys, key)
	}
	return r, append(keys, ed25519.NewKeyFromSeed(slices.Repeat([]byte{9}, ed25519.SeedSize))) // the last is a stranger's
}

func TestMergeIsNaiveMerge(t *testing.T) {
	r, keys := mergeRoster()
	at := time.Unix(1_800_000_000, 0).UTC()
	id := r.ID()
	age := r.Limits.SubmissionAge.Std()
	rapid.Check(t, func(t *rapid.T) {
		sub := rapid.Custom(func(t *rapid.T) archive.Submission {
			s := archive.Submission{Archive: id, Created: at.Add(rapid.SampledFrom([]time.Duration{0, -time.Hour, -age, -age - time.Second, time.Hour, time.Hour + time.Second}).Draw(t, "age"))}
			if rapid.IntRange(0, 20).Draw(t, "foreign") == 0 {
				s.Archive = archive.Digest{1}
			}
			for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "a/b", "ab", "b", "c", "z"}), 1, 3, rapid.ID[string]).Draw(t, "names") {
				size := rapid.SampledFrom([]uint64{1, 9}).Draw(t, "size")
				s.Bindings = append(s.Bindings, archive.Binding{Name: archive.Name(n), Content: archive.Content{Size: size, Digest: archive.Digest{byte(rapid.IntRange(0, 2).Draw(t, "digest"))}}})
			}
			slices.SortFunc(s.Bindings, func(a, b archive.Binding) int { return cmp.Compare(a.Name, b.Name) })
			s.Sign(rapid.SampledFrom(keys).Draw(t, "writer"))
			return s
		})
		pool := rapid.SliceOfN(sub, 0, 12).Draw(t, "submissions")
		var all [][]archive.Submission
		for range rapid.IntRange(1, 5).Draw(t, "proposals") {
			b := []archive.Submission{}
			for i := range pool {
				if rapid.Bool().Draw(t, fmt.Sprint("has ", i)) {
					b = append(b, pool[i])
				}
			}
			all = append(all, sortedBody(b))
		}
		var old []tree.Pair
		for _, n := range []string{"a/a", "ab", "b", "zz"} {
			if rapid.Bool().Draw(t, "bound "+n) {
				old = append(old, tree.Pair{Name: []byte(n), Val: []byte("old")})
			}
		}
		got, err := merged(r, 7, at, all, rowsOf(old))
		if err != nil {
			t.Fatal(err)
		}
		want := naive(r, 7, at, all, old)
		if len(got) != len(want) {
			t.Fatalf("%d names, want %d", len(got), len(want))
		}
		for i, p := range got {
			if i > 0 && string(got[i-1].Name) >= string(p.Name) {
				t.Fatalf("%q after %q", p.Name, got[i-1].Name)
			}
			if want[string(p.Name)] != string(p.Val) {
				t.Fatalf("%q: got %x, want %x", p.Name, p.Val, want[string(p.Name)])
			}
		}
	})
}

func TestMergeRules(t *testing.T) {
	r, keys := mergeRoster()
	at := time.Unix(1_800_000_000, 0).UTC()
	id := r.ID()
	sub := func(key int, created time.Time, name string, digest byte) archive.Submission {
		s := archive.Submission{Archive: id, Created: created, Bindings: []archive.Binding{{Name: archive.Name(name), Content: archive.Content{Size: 10, Digest: archive.Digest{digest}}}}}
		s.Sign(keys[key])
		return s
	}
	for _, tt := range []struct {
		name   string
		bodies [][]archive.Submission
		old    []tree.Pair
		want   string // name=first byte of the digest, ...
	}{
		{"nothing", nil, nil, ""},
		{"most proposals win", [][]archive.Submission{{sub(0, at, "n", 1)}, {sub(0, at, "n", 2)}, {sub(0, at, "n", 2)}}, nil, "n=2"},
		{"a tie goes to the lower", [][]archive.Submission{{sub(0, at, "n", 2)}, {sub(0, at, "n", 1)}}, nil, "n=1"},
		{"one proposal does not count twice", [][]archive.Submission{
			{sub(0, at, "n", 2), sub(0, at.Add(-time.Second), "n", 2)}, {sub(0, at, "n", 1)}}, nil, "n=1"},
		{"proposals of one value in different submissions add up", [][]archive.Submission{
			{sub(0, at, "n", 2)}, {sub(0, at.Add(-time.Second), "n", 2)}, {sub(0, at, "n", 1)}}, nil, "n=2"},
		{"a bound name keeps its entry", [][]archive.Submission{{sub(0, at, "m", 1), sub(0, at, "n", 1)}},
			[]tree.Pair{{Name: []byte("a")}, {Name: []byte("m")}, {Name: []byte("z")}}, "n=1"},
		{"outside its prefixes", [][]archive.Submission{{sub(1, at, "b", 1), sub(1, at, "ab", 1)}}, nil, "ab=1"},
		{"a stranger", [][]archive.Submission{{sub(3, at, "n", 1)}}, nil, ""},
		{"too old", [][]archive.Submission{{sub(0, at.Add(-r.Limits.SubmissionAge.Std()-time.Second), "n", 1)}}, nil, ""},
		{"over quota: the newer", [][]archive.Submission{{sub(2, at, "n", 1), sub(2, at.Add(-1*time.Second), "o", 1), sub(2, at.Add(-2*time.Second), "p", 1)}}, nil, "o=1 p=1"},
		{"over quota: what fewer propose", [][]archive.Submission{
			{sub(2, at, "n", 1), sub(2, at.Add(-1*time.Second), "o", 1), sub(2, at.Add(-2*time.Second), "p", 1)}, {sub(2, at, "n", 1)}}, nil, "n=1 p=1"},
	} {
		var bodies [][]archive.Submission
		for _, b := range tt.bodies {
			bodies = append(bodies, sortedBody(b))
		}
		pairs, err := merged(r, 3, at, bodies, rowsOf(tt.old))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range pairs {
			e, err := archive.ParseEntry(p.Val)
			if err != nil || e.Epoch != 3 {
				t.Errorf("%s: entry %x: %v", tt.name, p.Val, err)
			}
			got = append(got, fmt.Sprintf("%s=%d", p.Name, e.Digest[0]))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Of what a faulty replica proposes of a colluding writer, beyond his quota, no
// name is held.
func TestMergeHoldsQuota(t *testing.T) {
	r, keys := mergeRoster()
	at := time.Unix(1_800_000_000, 0).UTC()
	var bodies [][]archive.Submission
	for b := range 3 {
		var body []archive.Submission
		for i := range 20 {
			s := archive.Submission{Archive: r.ID(), Created: at.Add(-time.Duration(b*20+i) * time.Second)}
			for n := range 50 {
				s.Bindings = append(s.Bindings, archive.Binding{Name: archive.Name(fmt.Sprintf("%d/%02d/%02d", b, i, n)), Content: archive.Content{Size: 1}})
			}
			s.Sign(keys[0])
			body = append(body, s)
		}
		bodies = append(bodies, sortedBody(body))
	}
	a, err := merge(t.Context(), r, 1, at, openers(bodies), rowsOf(nil))
	if err != nil || len(a.values) != 100 || cap(a.values) > 100 {
		t.Errorf("%d names, room for %d, %v; the writer may add 100", len(a.values), cap(a.values), err)
	}
}

// A body that is another when it is read again is an error.
func TestMergeReadsAgain(t *testing.T) {
	r, keys := mergeRoster()
	at := time.Unix(1_800_000_000, 0).UTC()
	one := archive.Submission{Archive: r.ID(), Created: at, Bindings: []archive.Binding{{Name: "n"}}}
	one.Sign(keys[0])
	left := 1
	changed := func() proposalBody {
		l := list{one}[:left]
		left = 0
		return &l
	}
	if a, err := merge(t.Context(), r, 1, at, []opener{changed}, rowsOf(nil)); err == nil {
		t.Errorf("%d names of a body that is gone", len(a.values))
	}
}

func TestShell(t *testing.T) {
	base := archive.EpochRecord{Archive: archive.Digest{1}, Roster: archive.Digest{2}, Epoch: 4, Counts: []archive.ReplicaCounts{
		{Replica: 1, Counts: trust.Counts{Reset: 1}}, {Replica: 2}, {Replica: 3}, {Replica: 4, Counts: trust.Counts{Reset: 4, Restart: 4}}}}
	b := consensus.Block{}
	for i, at := range []int64{300, 100, 200, 400} {
		m := consensus.Manifest{Replica: uint32(i + 1), Time: at, Reset: 9, Restart: uint32(i)}
		b.Proposals = append(b.Proposals, consensus.ProposalCertificate{Join: consensus.Join{Manifest: m}})
	}
	if got := shell(base, 3, b).Time.Unix(); got != 200 {
		t.Errorf("median of four: %d, want the lower, 200", got)
	}
	b.Proposals = b.Proposals[:3]
	rec := shell(base, 3, b)
	if rec.Epoch != 5 || rec.Tick != 3 || rec.Previous != base.Head() || rec.Block != b.Digest() || rec.Time.Unix() != 200 {
		t.Errorf("record %+v", rec)
	}
	if !slices.Equal(rec.Joined, []uint32{1, 2, 3}) {
		t.Errorf("joined %v", rec.Joined)
	}
	want := []trust.Counts{{Reset: 9}, {Reset: 9, Restart: 1}, {Reset: 9, Restart: 2}, {Reset: 4, Restart: 4}}
	for i, c := range rec.Counts {
		if c.Counts != want[i] || base.Counts[0].Reset != 1 {
			t.Errorf("counts of %d: %v, want %v", c.Replica, c.Counts, want[i])
		}
	}
}

func TestNextTick(t *testing.T) {
	const most = 1<<64 - 1
	for _, tt := range []struct {
		ticks []uint64
		want  uint64
	}{
		{[]uint64{0, 0, 0}, 1}, {[]uint64{0, 0, 0, 0}, 1}, {[]uint64{0, 3, 0}, 4}, {[]uint64{0, 3, 0, 0}, 1},
		{[]uint64{2, 3, 3, 2}, 4}, {[]uint64{2, 3, 2, 2}, 3},
		{[]uint64{0, 0, most}, 1 + maxLead}, {[]uint64{most, 0, 0, 5}, 6}, {[]uint64{4, 5, most}, 6 + maxLead},
	} {
		got := nextTick(tt.ticks, 1)
		if got != tt.want {
			t.Errorf("%v: next tick %d, want %d", tt.ticks, got, tt.want)
		}
		if !justifies(tt.ticks, 1, got) {
			t.Errorf("%v do not justify their own next tick", tt.ticks)
		}
	}
	if justifies([]uint64{0, 0, most, 0}, 1, 2+maxLead) {
		t.Error("one replica justifies any tick")
	}
	if justifies([]uint64{5, 5}, 1, 1) {
		t.Error("too few replicas justify a tick")
	}
}
