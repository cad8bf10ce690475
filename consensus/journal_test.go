package consensus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// leftAfterVote returns the directory of a member killed after it signed.
func leftAfterVote(t *testing.T) (dir string, r role) {
	t.Helper()
	c := newCluster(t, 4)
	r = c.roles[c.leader()-1]
	p := c.run(r)
	eventually(t, "a vote is signed", func() bool { return signed(r.Dir) })
	p.kill()
	return r.Dir, r
}

func TestMayResume(t *testing.T) {
	remove := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill := func(name, with string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(with), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	left, r := leftAfterVote(t)
	for _, row := range []struct {
		name string
		harm func(t *testing.T, dir string)
		want bool
	}{
		{"as it was", func(*testing.T, string) {}, true},
		{"all gone", remove(""), true},
		{"no log", remove("wal"), false},
		{"empty log", fill("wal/wal", ""), false},
		{"garbage for a log", fill("wal/wal", "garbage, and not even short"), false},
		{"no votes", remove("votes"), false},
		{"garbage for votes", fill("votes", "{"), false},
		{"no instance", remove("instance"), false},
		{"garbage for an instance", fill("instance", "0123"), false},
		{"torn log", tear, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.Dir = filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(r.Dir, os.DirFS(left)); err != nil {
				t.Fatal(err)
			}
			dir := r.Dir
			row.harm(t, dir)
			if got := MayResume(dir); got != row.want {
				t.Errorf("MayResume is %v", got)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // it would wait for peers
			want := context.Canceled
			if !row.want {
				want = ErrSpent
			}
			if _, err := Agree(ctx, r.config()); !errors.Is(err, want) {
				t.Errorf("Agree: %v, want %v", err, want)
			}
		})
	}
}

func tear(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "wal", "wal")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()-5); err != nil {
		t.Fatal(err)
	}
}

func TestJournalOfAnotherInstance(t *testing.T) {
	dir, _ := leftAfterVote(t)
	if _, err := openJournal(dir, [32]byte{1}); !errors.Is(err, ErrSpent) {
		t.Errorf("votes of another instance: %v, want ErrSpent", err)
	}
	fresh := t.TempDir()
	for _, inst := range [][32]byte{{1}, {2}} { // nothing signed: begun anew
		if _, err := openJournal(fresh, inst); err != nil {
			t.Error(err)
		}
	}
}
