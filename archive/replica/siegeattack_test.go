package replica

import (
	"bytes"
	"crypto/ed25519"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// An attacker has root on all replicas between two phases. Devices and their
// directories he leaves alone: software ones vouch for nothing against him.
type attacker struct {
	*cluster
	rnd    *rand.Rand
	copies map[uint32][]string  // of each replica's store, in earlier phases
	made   []archive.Submission // all that he has seen
}

// An attack is one thing that he does to the store of a replica.
type attack struct {
	name string
	few  bool // pending Adds are lost: nobody else has them for certain
	do   func(a *attacker, id uint32, store string) error
}

// attacks are all that he can do.
var attacks = []attack{
	{name: "tree: a row edited, digests left alone", do: inTree(func(b *bbolt.Bucket, k, v []byte) error {
		v = bytes.Clone(v)
		v[10] ^= 1
		return b.Put(k, v)
	})},
	{name: "tree: a row removed, digests left alone", do: inTree(func(b *bbolt.Bucket, k, _ []byte) error { return b.Delete(k) })},
	{name: "tree: a row planted, digests left alone", do: inTree(func(b *bbolt.Bucket, k, v []byte) error {
		return b.Put(append(bytes.Clone(k), "-planted"...), bytes.Clone(v))
	})},
	{name: "tree: two rows swapped, digests left alone", do: inTree(func(b *bbolt.Bucket, k, v []byte) error {
		first, w := b.Cursor().First()
		first, v, w = bytes.Clone(first), bytes.Clone(v), bytes.Clone(w)
		return errors.Join(b.Put(first, v), b.Put(bytes.Clone(k), w))
	})},
	{name: "tree: a branch page edited", do: branchPage},
	{name: "tree: searches led astray, rows left alone", do: astray},
	{name: "tree: any page edited", do: edit(treeFile)},
	{name: "tree: deleted", do: remove(treeFile)},
	{name: "tree: an older one", do: restore(treeFile)},
	{name: "history: records edited", do: inHistory(recordSuffix, flipOne)},
	{name: "history: records deleted", do: inHistory(recordSuffix, func(_ *attacker, path string) error { return os.Remove(path) })},
	{name: "history: records swapped", do: inHistory(recordSuffix, swapFirst)},
	{name: "history: certificates edited", do: inHistory(certificateSuffix, flipOne)},
	{name: "history: certificates deleted", do: inHistory(certificateSuffix, func(_ *attacker, path string) error { return os.Remove(path) })},
	{name: "history: certificates swapped", do: inHistory(certificateSuffix, swapFirst)},
	{name: "history: deleted", do: remove(historyDir)},
	{name: "history: an older one", do: restore(historyDir)},
	{name: "phase data: deleted", do: remove("phase")},
	{name: "phase data: garbage", do: garbagePhase},
	{name: "phase data: edited", do: editPhase},
	{name: "phase data: an older one", do: restore("phase")},
	{name: "phase data: another replica's", do: func(a *attacker, id uint32, store string) error {
		return replaceTree(filepath.Join(a.storeOf(uint32(a.rnd.IntN(a.Roster.N())+1)), "phase"), filepath.Join(store, "phase"))
	}},
	{name: "pending: deleted", few: true, do: remove(pendingFile)},
	{name: "pending: edited", few: true, do: edit(pendingFile)},
	{name: "pending: an older one", few: true, do: restore(pendingFile)},
	{name: "pending: a stranger's Adds", do: strangersAdds},
	{name: "pending: all that was ever added, once more", do: allAgain},
	{name: "wrong kind: of the phase's directories", do: misplace(func(e archive.Epoch) []string {
		d := phaseDir("phase")
		return []string{string(d), d.pieces(), d.epoch(e), string(d.tick(e, 1)), string(d.tick(e, 2))}
	})},
	{name: "wrong kind: of pieces to come", do: misplacePieces},
	{name: "wrong kind: of the other directories", do: misplace(func(archive.Epoch) []string {
		return []string{historyDir, tmpDir, partialDir}
	})},
	{name: "wrong kind: of files", do: misplace(func(e archive.Epoch) []string {
		next := filepath.Base((&Store{}).historyPath(e, recordSuffix))
		return []string{treeFile, treeFile + ".new", pendingFile + ".new", pendingFile + ".lock", filepath.Join(historyDir, next)}
	})},
	{name: "wrong kind: of contents and pending Adds", few: true, do: misplace(func(archive.Epoch) []string {
		return []string{contentDir, pendingFile}
	})},
	{name: "store: deleted", few: true, do: func(_ *attacker, _ uint32, store string) error { return os.RemoveAll(store) }},
	{name: "store: an older one, but for pending Adds", do: func(a *attacker, id uint32, store string) error {
		var err error
		for _, part := range []string{treeFile, historyDir, "phase"} {
			err = errors.Join(err, restore(part)(a, id, store))
		}
		return err
	}},
}

func (a *attacker) storeOf(id uint32) string {
	return filepath.Join(a.Replicas[id-1].Dir, storeDir)
}

// keepCopies copies the stores as they are, for later use.
func (a *attacker) keepCopies() {
	for _, id := range a.all() {
		to := a.t.TempDir()
		for _, part := range []string{treeFile, historyDir, "phase", pendingFile} {
			must(a.t, replaceTree(filepath.Join(a.storeOf(id), part), filepath.Join(to, part)))
		}
		a.copies[id] = append(a.copies[id], to)
	}
}

// replaceTree puts a copy of a file or directory, if it is there, in place of
// another.
func replaceTree(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil || from == to || !info.IsDir() && !info.Mode().IsRegular() {
		return nil
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if info.IsDir() {
		if err := os.CopyFS(to, os.DirFS(from)); !errors.Is(err, fs.ErrInvalid) { // up to a pipe
			return err
		}
		return nil
	}
	b, err := fileAt(from)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, b, 0o600))
}

// fileAt reads a file; not a pipe, which would keep the attacker waiting.
func fileAt(path string) ([]byte, error) {
	if err := checkRegular(path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func remove(part string) func(*attacker, uint32, string) error {
	return func(_ *attacker, _ uint32, store string) error { return os.RemoveAll(filepath.Join(store, part)) }
}

// restore puts a part back as it was in an earlier phase.
func restore(part string) func(*attacker, uint32, string) error {
	return func(a *attacker, id uint32, store string) error {
		all := a.copies[id]
		if len(all) == 0 {
			return nil
		}
		return replaceTree(filepath.Join(all[a.rnd.IntN(len(all))], part), filepath.Join(store, part))
	}
}

// edit changes up to 64 bytes of a file, at one place.
func edit(part string) func(*attacker, uint32, string) error {
	return func(a *attacker, _ uint32, store string) error {
		path := filepath.Join(store, part)
		b, err := fileAt(path)
		if err != nil || len(b) == 0 {
			return nil
		}
		for at, i := a.rnd.IntN(len(b)), 0; at < len(b) && i < 64; at, i = at+1, i+1 {
			b[at] ^= byte(1 + a.rnd.IntN(255))
		}
		return overwrite(path, b)
	}
}

func flipOne(a *attacker, path string) error {
	b, err := fileAt(path)
	if err != nil || len(b) == 0 {
		return err
	}
	b[a.rnd.IntN(len(b))] ^= 1 << a.rnd.IntN(8)
	return os.WriteFile(path, b, 0o600)
}

// inTree changes a row of the tree by means of bbolt itself.
func inTree(change func(b *bbolt.Bucket, k, v []byte) error) func(*attacker, uint32, string) error {
	return func(a *attacker, _ uint32, store string) error {
		path := filepath.Join(store, treeFile)
		if checkRegular(path) != nil {
			return nil
		}
		return guard(func() error {
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
			if err != nil {
				return nil // damaged already
			}
			err = db.Update(func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte("leaves"))
				if b == nil {
					return nil
				}
				n := b.Stats().KeyN
				if n == 0 {
					return nil
				}
				c := b.Cursor()
				k, v := c.First()
				for range a.rnd.IntN(n) {
					k, v = c.Next()
				}
				if len(v) < 20 {
					return nil
				}
				return change(b, bytes.Clone(k), v)
			})
			return errors.Join(err, db.Close())
		})
	}
}

// branchPage changes a byte of a branch page, or of any if there is none.
func branchPage(a *attacker, id uint32, store string) error {
	path := filepath.Join(store, treeFile)
	b, err := fileAt(path)
	if err != nil {
		return nil
	}
	const size, branch = 4096, 1
	var pages []int
	for at := 0; at+size <= len(b); at += size {
		if b[at+8] == branch && b[at+9] == 0 {
			pages = append(pages, at)
		}
	}
	if len(pages) == 0 {
		return edit(treeFile)(a, id, store)
	}
	b[pages[a.rnd.IntN(len(pages))]+16+a.rnd.IntN(200)] ^= 1 << a.rnd.IntN(8)
	return overwrite(path, b)
}

// astray makes all searches in the tree end at its first rows. A walk finds all.
func astray(_ *attacker, _ uint32, store string) error {
	path := filepath.Join(store, treeFile)
	b, err := fileAt(path)
	if err != nil {
		return nil
	}
	const size, branch = 4096, 1
	for at := 0; at+size <= len(b); at += size {
		page := b[at : at+size]
		if binary.NativeEndian.Uint16(page[8:]) != branch {
			continue
		}
		for i := 1; i < int(binary.NativeEndian.Uint16(page[10:])); i++ {
			x := page[16+16*i:]
			pos, n := binary.NativeEndian.Uint32(x), binary.NativeEndian.Uint32(x[4:])
			if uint64(pos)+uint64(n) <= uint64(len(x)) {
				copy(x[pos:pos+n], bytes.Repeat([]byte{0xff}, int(n)))
			}
		}
	}
	return overwrite(path, b)
}

// inHistory changes some of the files of history.
func inHistory(suffix string, change func(a *attacker, path string) error) func(*attacker, uint32, string) error {
	return func(a *attacker, _ uint32, store string) error {
		all, err := filepath.Glob(filepath.Join(store, historyDir, "*"+suffix))
		for _, path := range all {
			if a.rnd.IntN(2) == 0 || path == all[len(all)-1] {
				err = errors.Join(err, change(a, path))
			}
		}
		return err
	}
}

// swapFirst swaps a file with the first of its kind.
func swapFirst(_ *attacker, path string) error {
	all, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"+filepath.Ext(path)))
	if err != nil || len(all) == 0 || all[0] == path {
		return err
	}
	tmp := path + ".swap"
	return errors.Join(os.Rename(path, tmp), os.Rename(all[0], path), os.Rename(tmp, all[0]))
}

// garbagePhase plants garbage where attempts at the next epochs lie.
func garbagePhase(a *attacker, id uint32, store string) error {
	e := archive.Epoch(a.Replicas[id-1].Statement(a.t).Slots.Epoch)
	for next := range archive.Epoch(2) {
		for tick := range uint64(3) {
			d := phaseDir(filepath.Join(store, "phase")).tick(e+1+next, tick+1)
			if err := os.MkdirAll(d.engine(), 0o700); err != nil {
				return err
			}
			for _, f := range []string{fileBoot, fileJoin, fileBlock, fileRecord, filePrepare, fileChallenges, "vouched-1", "engine/x"} {
				b := make([]byte, 2000)
				crand.Read(b)
				if err := os.WriteFile(filepath.Join(string(d), f), b, 0o600); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// editPhase changes a byte of each file of an attempt.
func editPhase(a *attacker, _ uint32, store string) error {
	return filepath.WalkDir(filepath.Join(store, "phase"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		return flipOne(a, path)
	})
}

// misfits are what may lie where a file or a directory belongs.
var misfits = []func(path string) error{
	func(path string) error { return os.MkdirAll(filepath.Join(path, "a", "b"), 0o700) },
	func(path string) error { return os.WriteFile(path, []byte("a file"), 0o600) },
	func(path string) error { return unix.Mkfifo(path, 0o600) },
	func(path string) error { return os.Symlink(path, path) },
	func(path string) error { return os.Symlink(filepath.Join(path, "nowhere"), path) },
}

// misplace puts something of any kind in one of the places, which depend on the
// epoch to come.
func misplace(places func(archive.Epoch) []string) func(*attacker, uint32, string) error {
	return func(a *attacker, id uint32, store string) error {
		all := places(archive.Epoch(a.Replicas[id-1].Statement(a.t).Slots.Epoch) + 1)
		return a.misplace(filepath.Join(store, all[a.rnd.IntN(len(all))]))
	}
}

func (a *attacker) misplace(path string) error {
	put := misfits[a.rnd.IntN(len(misfits))]
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.RemoveAll(path), put(path))
}

// misplacePieces puts something of any kind where each piece of what is pending
// will lie.
func misplacePieces(a *attacker, id uint32, store string) error {
	st, err := OpenStore(store, a.Roster)
	if err != nil {
		return err
	}
	defer st.Close()
	p, err := st.Pending()
	if err != nil {
		return err
	}
	var body bytes.Buffer
	if err := p.Each(func(s archive.Submission) error { return writeSubmission(&body, s.Bytes()) }); err != nil {
		return err
	}
	d := phaseDir(filepath.Join(store, "phase"))
	return consensus.Split(&body, func(piece []byte) error { return a.misplace(d.piecePath(archive.DigestOf(piece))) })
}

// strangersAdds puts what no writer has signed among the pending: other values
// for names that writers have added.
func strangersAdds(a *attacker, id uint32, store string) error {
	_, key, _ := ed25519.GenerateKey(nil)
	var all []archive.Submission
	for _, s := range a.made {
		s.Bindings = slices.Clone(s.Bindings)
		for i := range s.Bindings {
			s.Bindings[i].Content = archivetest.ContentOf([]byte("a stranger's"))
		}
		forged := s // the writer's key, but not his signature
		s.Sign(key)
		all = append(all, s, forged)
	}
	return a.putAll(id, all)
}

// allAgain puts all that was ever submitted among the pending.
func allAgain(a *attacker, id uint32, _ string) error { return a.putAll(id, a.made) }

func (a *attacker) putAll(id uint32, all []archive.Submission) error {
	st, err := OpenStore(a.storeOf(id), a.Roster)
	if err != nil {
		return err
	}
	p, err := st.Pending()
	for _, s := range all {
		if err == nil {
			err = p.Put(s)
		}
	}
	return errors.Join(err, st.Close())
}

// One attack on three of four replicas, or on one where pending Adds are lost,
// between two phases: all make the next epoch, with all that was bound before and
// all that was acknowledged. An attack that has changed nothing fails.
//
// Some are made on all four: where every copy of what the heads name is edited or
// gone, no replica makes an epoch or stores anything. Once one intact copy is
// back, all go on from there.
func TestAttackTable(t *testing.T) {
	t.Parallel()
	everywhere := []string{"tree: a row edited, digests left alone", "tree: an older one", "history: an older one", "store: an older one, but for pending Adds"}
	one := rand.New(rand.NewPCG(*seed, 40)).IntN(len(attacks))
	for i, x := range attacks {
		if !*every && i != one {
			continue
		}
		t.Run(x.name, func(t *testing.T) { newAttacked(t).row(x) })
		if *every && slices.Contains(everywhere, x.name) {
			t.Run(x.name+", everywhere", func(t *testing.T) { newAttacked(t).everywhere(x) })
		}
	}
}

// attacked is an archive of two epochs, with names pending.
type attacked struct {
	*attacker
	old, pending archive.Submission
}

func newAttacked(t *testing.T) *attacked {
	c := newCluster(t, 4)
	hasten(c)
	a := &attacked{attacker: &attacker{cluster: c, rnd: rand.New(rand.NewPCG(*seed, 41)), copies: make(map[uint32][]string)}}
	a.old = c.files(200, "old")
	a.pending = c.files(3, "pending")
	a.made = []archive.Submission{a.old, a.pending}
	c.add(a.old, c.all()...)
	c.phase(t.Context(), c.all()...)
	c.agreed(1, c.all()...)
	a.keepCopies()
	c.add(c.files(200, "second"), c.all()...)
	c.phase(t.Context(), c.all()...)
	c.agreed(2, c.all()...)
	c.add(a.pending, c.all()...)
	return a
}

// row is one row of the table.
func (a *attacked) row(x attack) {
	t := a.t
	if strings.HasPrefix(x.name, "phase data") { // of an attempt that ends before anybody commits
		a.cutAtCommit(nil, a.all()...)
	}
	here := a.all()[1:]
	if x.few {
		here = here[:1]
	}
	changed := false
	for _, id := range here {
		before := a.printOf(id)
		if err := x.do(a.attacker, id, a.storeOf(id)); err != nil {
			t.Fatal(err)
		}
		changed = changed || a.printOf(id) != before
	}
	if !changed {
		t.Error("the attack did nothing")
	}
	a.goesOn()
}

// goesOn has all replicas make the next epoch, with nothing lost or rebound.
func (a *attacked) goesOn() {
	a.phase(a.t.Context(), a.all()...)
	a.agreed(3, a.all()...)
	for _, id := range a.all() {
		a.binds(id, a.old, 1)
		a.binds(id, a.pending, 3)
	}
}

// binds wants all names of a submission bound as they are there, in an epoch.
func (a *attacked) binds(id uint32, s archive.Submission, epoch archive.Epoch) {
	a.t.Helper()
	for _, b := range s.Bindings {
		if e, ok := a.entry(id, b.Name); !ok || e.Content != b.Content || e.Epoch != epoch {
			a.t.Fatalf("replica %d: %q: %v, %v; want %v of epoch %d", id, b.Name, e, ok, b.Content, epoch)
		}
	}
}

// printOf tells stores apart.
func (a *attacker) printOf(id uint32) (all string) {
	filepath.WalkDir(a.storeOf(id), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			b, _ := os.ReadFile(path)
			all += fmt.Sprintln(path, archive.DigestOf(b))
		} else if err == nil {
			all += fmt.Sprintln(path, d.Type())
		}
		return nil
	})
	return all
}

// everywhere is a row with an attack on all replicas.
func (a *attacked) everywhere(x attack) {
	t := a.t
	intact := filepath.Join(t.TempDir(), "intact")
	must(t, replaceTree(a.storeOf(2), intact))
	for _, id := range a.all() {
		must(t, x.do(a.attacker, id, a.storeOf(id)))
	}
	a.refused()
	must(t, replaceTree(intact, a.storeOf(2)))
	a.Roster.Limits.Phase = archive.Duration(30 * time.Second)
	a.goesOn()
}

// refused has a phase in which nobody gets anywhere.
func (a *attacked) refused() {
	a.t.Helper()
	a.Roster.Limits.Phase = archive.Duration(7 * time.Second)
	var before []trust.Slots
	for _, r := range a.Replicas {
		before = append(before, r.Statement(a.t).Slots)
	}
	a.phase(a.t.Context(), a.all()...)
	for i, r := range a.Replicas {
		if a.last[r.ID].err == nil || r.Statement(a.t).Slots != before[i] {
			a.t.Errorf("replica %d: %+v; its device holds %+v", r.ID, a.last[r.ID], r.Statement(a.t).Slots)
		}
	}
}

// attack has an attacker do some things to all replicas, but to those that hold
// what would be lost with them: the newest epoch, with its tree, and the data of a
// record that is committed; and the whole of history. What everybody has lost,
// nobody can repair. Pending Adds he destroys at faulty replicas only: more may
// not lose them.
func (s *siege) attack() {
	spare, ok := s.spare()
	if !ok {
		s.count["no attack: no replica has everything"]++
		return
	}
	a := &attacker{cluster: s.cluster, rnd: s.rnd, copies: s.copies, made: s.everMade}
	for range 1 + s.rnd.IntN(3) {
		x := attacks[s.rnd.IntN(len(attacks))]
		for _, id := range s.all() {
			if slices.Contains(spare, id) || x.few && s.faulty[id] == nil || s.chance(5) {
				continue
			}
			if err := x.do(a, id, a.storeOf(id)); err != nil {
				s.t.Logf("replica %d: %s: %v", id, x.name, err)
			}
			s.count["attack: "+x.name]++
		}
		s.t.Logf("before phase %d: %s, but %v", s.number, x.name, spare)
	}
	if s.chance(2) && len(s.copies[1]) < 4 {
		a.keepCopies()
	}
}

// spare returns correct replicas that together hold everything.
func (s *siege) spare() (spare []uint32, ok bool) {
	var newest, history uint32
	var most trust.Slots
	for _, id := range s.loyal() {
		st := s.Replicas[id-1].Statement(s.t)
		at := st.Slots
		if at.Committed.Epoch <= at.Epoch {
			at.Committed = trust.Vote{}
		}
		if newest == 0 || at.Epoch > most.Epoch || at.Epoch == most.Epoch && at.Committed.Tick > most.Committed.Tick {
			newest, most = id, at
		}
		if s.hasHistory(id) {
			history = id
		}
	}
	if archive.Epoch(most.Epoch) != s.newest || history == 0 || !s.hasTree(newest, most) {
		return nil, false
	}
	return []uint32{newest, history}, true
}

// hasTree says whether a replica's record and tree are those that its slots name.
func (s *siege) hasTree(id uint32, slots trust.Slots) (good bool) {
	s.withStore(id, func(store *Store) error {
		rec, _, err := store.Record(archive.Epoch(slots.Epoch))
		if err != nil || slots.Epoch > 0 && !holdsHead(slots, rec) {
			return nil
		}
		tr, err := store.OpenTree(true)
		if err != nil {
			good = slots.Epoch == 0
			return nil
		}
		defer tr.Close()
		root, n, err := tr.Rehash(s.t.Context(), upTo(rec.Epoch))
		good = err == nil && root == rec.Root && n == rec.Names
		return nil
	})
	return good
}
