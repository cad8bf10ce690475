package archivetest_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// keeper is one way to keep a directory of files.
type keeper struct {
	name   string
	copies int
	atMost int // files, if there is a limit: more take too long

	// What is printed and done. Commands are sh's, with the files in $CORPUS and a
	// directory of the keeper's own in $KEPT.
	version, prepare, add, count, bind, audit, together, verify *job

	kept string
	harm func(t *testing.T)                              // changes a byte of what is kept
	open func(t *testing.T, k keeper, dir string) keeper // for the files in dir
}

// job is something that is timed: as it is printed, and how it is done.
type job struct {
	text string
	run  func() (out string, err error)
}

// sh is a command, which has yet to learn its directories.
func sh(text string) *job { return &job{text: text} }

// copied is the audit of a plain copy, and all else but the list.
const copied = `cp -r "$CORPUS" "$KEPT/copy" && cd "$KEPT/copy" && `

var keepers = []keeper{
	{
		name: "cp, sha256sum", copies: 1, open: openShell, version: sh("sha256sum --version | head -n 1"),
		add:    sh(copied + `find . -type f -print0 | xargs -0 sha256sum >../list && sync -f .`),
		count:  sh(`wc -l <"$KEPT/list"`),
		audit:  sh(`cd "$KEPT/copy" && sha256sum -c --quiet ../list`),
		verify: sh(`cd "$CORPUS" && sha256sum -c --quiet "$KEPT/list"`),
	},
	{
		name: "cp, hashdeep", copies: 1, open: openShell, version: sh(`echo "hashdeep $(hashdeep -V)"`),
		add:    sh(copied + `hashdeep -c sha256 -r -l . >../list && sync -f .`),
		count:  sh(`grep -vc '^[%#]' "$KEPT/list"`),
		audit:  sh(`cd "$KEPT/copy" && hashdeep -c sha256 -a -r -l -k ../list .`),
		verify: sh(`cd "$CORPUS" && hashdeep -c sha256 -a -r -l -k "$KEPT/list" .`),
	},
	{
		name: "restic", copies: 1, open: openShell, version: sh("restic version"),
		prepare: sh(`restic -q --no-cache -r "$KEPT/copy" init`),
		add:     sh(`cd "$CORPUS" && restic -q --no-cache -r "$KEPT/copy" backup .`),
		count:   sh(`restic -q --no-cache -r "$KEPT/copy" ls latest | grep -c '/[0-9]\{6\}$'`),
		audit:   sh(`restic -q --no-cache -r "$KEPT/copy" check --read-data`),
		verify:  sh(`cd "$CORPUS" && restic --no-cache -r "$KEPT/copy" backup --force --dry-run . | grep 'Would add to the repository: 0 B '`),
	},
	{
		name: "borg", copies: 1, open: openShell, version: sh("borg --version"),
		prepare: sh(`borg init -e none "$KEPT/copy"`),
		add:     sh(`cd "$CORPUS" && borg create "$KEPT/copy::first" .`),
		count:   sh(`borg list --short "$KEPT/copy::first" | grep -c '/[0-9]\{6\}$'`),
		audit:   sh(`borg check --verify-data "$KEPT/copy"`),
		verify:  sh(`cd "$CORPUS" && borg create --files-cache disabled "$KEPT/copy::$$" . && changed=$(borg diff "$KEPT/copy::first" $$) && test -z "$changed"`),
	},
	{
		name: "git-annex", copies: 1, atMost: 2048, open: openShell, version: sh("git annex version | head -n 1"),
		prepare: sh(`git init -q "$KEPT/copy" && cd "$KEPT/copy" && git annex init -q`),
		add:     sh(`cp -r "$CORPUS" "$KEPT/copy/corpus" && cd "$KEPT/copy" && git annex add -q . && git commit -qm add && sync -f .`),
		count:   sh(`cd "$KEPT/copy" && git annex find | wc -l`),
		audit:   sh(`cd "$KEPT/copy" && git annex fsck -q`),
	},
	{name: "bbolt", copies: 1, open: openBolt, version: sh("go list -m go.etcd.io/bbolt")},
	{name: "bonafide", copies: 4, open: openCluster},
}

// openShell gives a keeper of commands its directory.
func openShell(t *testing.T, k keeper, dir string) keeper {
	t.Helper()
	k.kept = t.TempDir()
	env := append(os.Environ(), "CORPUS="+dir, "KEPT="+k.kept, "HOME="+t.TempDir(), "LC_ALL=C.UTF-8",
		"RESTIC_PASSWORD=x", "BORG_BASE_DIR="+t.TempDir(), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes",
		"GIT_AUTHOR_NAME=x", "GIT_AUTHOR_EMAIL=x", "GIT_COMMITTER_NAME=x", "GIT_COMMITTER_EMAIL=x")
	for _, j := range k.jobs() {
		if *j != nil {
			*j = &job{(*j).text, shellIn(t, env, (*j).text)}
		}
	}
	k.harm = func(t *testing.T) {
		part := filepath.Join(k.kept, "copy")
		for _, below := range []string{"data", ".git/annex/objects"} { // of restic and borg; of git-annex
			if dir := filepath.Join(part, below); isDir(dir) {
				part = dir
			}
		}
		flipMiddle(t, largest(t, part))
	}
	return k
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// shellIn runs a command by sh.
func shellIn(t *testing.T, env []string, text string) func() (string, error) {
	return func() (string, error) {
		c := exec.CommandContext(t.Context(), "sh", "-c", text)
		c.Env = env
		out, err := c.CombinedOutput()
		return string(out), err
	}
}

func (k *keeper) jobs() []**job {
	return []**job{&k.version, &k.prepare, &k.add, &k.count, &k.audit, &k.verify}
}

// commands is what a keeper did, a line each.
func (k *keeper) commands() string {
	var b strings.Builder
	for i, what := range []string{"prepare", "add", "bind", "audit", "together", "verify"} {
		if j := []*job{k.prepare, k.add, k.bind, k.audit, k.together, k.verify}[i]; j != nil {
			fmt.Fprintf(&b, "      %-9s %s\n", what, j.text)
		}
	}
	return b.String()
}

// said does what must succeed and returns what it printed.
func (k *keeper) said(t *testing.T, j *job) string {
	t.Helper()
	if j == nil {
		return ""
	}
	out, err := j.run()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", k.name, j.text, err, out)
	}
	return out
}

// timed does what must succeed and returns how long it took; 0 if there is nothing
// to do.
func (k *keeper) timed(t *testing.T, j *job) time.Duration {
	t.Helper()
	if j == nil {
		return 0
	}
	settle(t)
	began := time.Now()
	k.said(t, j)
	return time.Since(began)
}

// done is a job that prints nothing.
func done(text string, do func() error) *job {
	return &job{text, func() (string, error) { return "", do() }}
}

// boltKept is the bucket of path to digest and content.
var boltKept = []byte("kept")

// boltBatch is how many bytes of files are put and synced at a time.
const boltBatch = 16 << 20

// openBolt keeps files and their digests in one bare bbolt file, in one thread.
func openBolt(t *testing.T, k keeper, dir string) keeper {
	k.kept = t.TempDir()
	path := filepath.Join(k.kept, "bolt.db")
	on := func(do func(db *bolt.DB) error) func() error {
		return func() error {
			db, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			return errors.Join(do(db), db.Close())
		}
	}
	k.version.run = shellIn(t, os.Environ(), k.version.text)
	k.add = done("digest and bytes of each file under its path, 16 MiB a transaction", on(func(db *bolt.DB) error { return boltAdd(db, dir) }))
	k.audit = done("Tx.Check, and the SHA-256 of all values against their digests", on(boltAudit))
	k.verify = done("the SHA-256 of each file against the digest kept", on(func(db *bolt.DB) error { return boltVerify(db, dir) }))
	k.count = &job{"", func() (n string, err error) {
		err = on(func(db *bolt.DB) error {
			return db.View(func(tx *bolt.Tx) error { n = fmt.Sprint(tx.Bucket(boltKept).Stats().KeyN); return nil })
		})()
		return n, err
	}}
	k.harm = func(t *testing.T) {
		if err := on(boltHarm)(); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func boltAdd(db *bolt.DB, dir string) error {
	var paths []string
	var values [][]byte
	size := 0
	flush := func() error {
		defer func() { paths, values, size = nil, nil, 0 }()
		return db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(boltKept)
			for i := range paths {
				if err == nil {
					err = b.Put([]byte(paths[i]), values[i])
				}
			}
			return err
		})
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		digest := sha256.Sum256(b)
		paths, values, size = append(paths, path), append(values, append(digest[:], b...)), size+len(b)
		if err == nil && size >= boltBatch {
			err = flush()
		}
		return err
	})
	return errors.Join(err, flush())
}

func boltAudit(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) (err error) {
		for wrong := range tx.Check() {
			err = errors.Join(err, wrong)
		}
		return errors.Join(err, tx.Bucket(boltKept).ForEach(func(path, v []byte) error {
			if digest := sha256.Sum256(v[sha256.Size:]); !bytes.Equal(digest[:], v[:sha256.Size]) {
				return fmt.Errorf("%s is damaged", path)
			}
			return nil
		}))
	})
}

func boltVerify(db *bolt.DB, dir string) error {
	return db.View(func(tx *bolt.Tx) error {
		kept := tx.Bucket(boltKept)
		return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if digest := sha256.Sum256(b); err == nil && !bytes.HasPrefix(kept.Get([]byte(path)), digest[:]) {
				err = fmt.Errorf("%s has changed", path)
			}
			return err
		})
	})
}

// boltHarm changes a bit of the last value.
func boltHarm(db *bolt.DB) error {
	return db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(boltKept)
		path, v := b.Cursor().Last()
		v = bytes.Clone(v)
		v[len(v)-1] ^= 1
		return b.Put(bytes.Clone(path), v)
	})
}

// openCluster keeps files in an archive of four replicas, each a process, on this
// machine.
func openCluster(t *testing.T, k keeper, dir string) keeper {
	t.Helper()
	c := newCluster(t, 4, "software")
	k.kept = c.dir
	ours := func(args ...string) *job {
		text := strings.NewReplacer(dir, `"$CORPUS"`, c.dir, `"$KEPT"`).Replace(strings.Join(args, " "))
		return &job{"bonafide " + text, func() (string, error) {
			out, err := c.command(args...).CombinedOutput()
			return string(out), err
		}}
	}
	audits := make([]*job, 4)
	for i, id := range c.ids() {
		audits[i] = ours("audit", "--dir", c.replicaDir(id))
	}
	k.version = &job{"", func() (string, error) { return "bonafide, of this source; four replicas, software devices\n", nil }}
	k.add = ours("-q", "add", "-r", "corpus", dir, "--timeout", "60s")
	k.count = &job{"", func() (string, error) { return fmt.Sprint(c.pendingEverywhere()), nil }}
	k.bind = done("bonafide update, on all four", func() error { c.phase(2, c.ids()...); return nil })
	k.audit = audits[0]
	k.together = done(audits[0].text+", and the other three meanwhile", func() error { return together(audits) })
	k.verify = ours("-q", "verify", "-r", dir, "corpus")
	k.harm = func(t *testing.T) {
		var kept []string
		for _, of := range []string{"content", "packs"} { // large ones and small ones
			if dir := filepath.Join(c.replicaDir(1), "store", of); isDir(dir) {
				kept = append(kept, dir)
			}
		}
		flipMiddle(t, largest(t, kept...))
	}
	return k
}

// pendingEverywhere returns how many names wait at each replica: 0 if one has
// others than the rest.
func (c *cluster) pendingEverywhere() (n uint64) {
	for i, m := range c.roster.Replicas {
		st, err := c.status(m.ID)
		if err != nil || i > 0 && st.Pending != n {
			return 0
		}
		n = st.Pending
	}
	return n
}

// together does all jobs at once, of which none may fail.
func together(all []*job) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, j := range all {
		wg.Go(func() {
			if out, err := j.run(); err != nil {
				errs[i] = fmt.Errorf("%s: %w: %s", j.text, err, out)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
