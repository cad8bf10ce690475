package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// tool is another program. It may ask for a passphrase: stdin and stderr are ours.
type tool struct {
	a  *app
	is string
}

// localGit are the settings of one repository that a process may inherit, as from
// a hook (git rev-parse --local-env-vars).
var localGit = []string{
	"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY",
	"GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_REPLACE_REF_BASE",
}

func (t tool) command(ctx context.Context, args []string) *exec.Cmd {
	c := exec.CommandContext(ctx, t.is, args...)
	c.Stdin, c.Stderr, c.Env = t.a.stdin, t.a.stderr(), slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(localGit, name)
	})
	c.Env = append(c.Env, "GIT_GRAFT_FILE="+os.DevNull)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = patience / 2
	return c
}

// output runs the tool and returns what it prints.
func (t tool) output(ctx context.Context, args ...string) ([]byte, error) {
	out, err := t.command(ctx, args).Output()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, withStatus(exitUsage, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", t.is, err)
	}
	return out, nil
}

// hexID is what identifiers of snapshots, archives and objects look like.
var hexID = regexp.MustCompile(`^[0-9a-f]{40,64}$`)

func checkIDs(tool string, all []guarded) ([]guarded, error) {
	for _, g := range all {
		if !hexID.MatchString(g.id) {
			return nil, fmt.Errorf("%s: %w: identifier %q", tool, archive.ErrFormat, g.id)
		}
	}
	return all, nil
}

// resticRepository keeps snapshots. A snapshot's identifier is the SHA-256 of its
// file, so that one which is there is what it was.
type resticRepository struct {
	tool
	at        string
	originals map[string]bool // first snapshots of those that were written anew
}

func (r *resticRepository) head(ctx context.Context) (all []guarded, err error) {
	out, err := r.output(ctx, "--repo="+r.at, "--no-lock", "--json", "snapshots")
	if err != nil {
		return nil, err
	}
	var list []struct {
		ID, Original string
		Time         time.Time
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("restic snapshots: %w", err)
	}
	r.originals = make(map[string]bool)
	for _, s := range list {
		all = append(all, guarded{s.ID, s.Time.UTC().Format(time.RFC3339)})
		r.originals[s.Original] = true
	}
	return checkIDs("restic", all)
}

// keeps: restic tag and the like write a snapshot anew and name the first one.
func (r *resticRepository) keeps(_ context.Context, _ map[guarded]bool, was guarded) (bool, error) {
	return r.originals[was.id], nil
}

// borgRepository keeps archives. An archive's identifier is a keyed hash of what
// it consists of.
type borgRepository struct {
	tool
	at string
}

func (r *borgRepository) head(ctx context.Context) (all []guarded, err error) {
	out, err := r.output(ctx, "list", "--bypass-lock", "--json", "--", r.at)
	if err != nil {
		return nil, err
	}
	var list struct{ Archives []struct{ ID, Name string } }
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("borg list: %w", err)
	}
	for _, ar := range list.Archives {
		all = append(all, guarded{ar.ID, ar.Name})
	}
	return checkIDs("borg", all)
}

// keeps: an archive that was renamed has another identifier.
func (r *borgRepository) keeps(context.Context, map[guarded]bool, guarded) (bool, error) {
	return false, nil
}

// gitRepository keeps branches and tags.
type gitRepository struct {
	tool
	at string
}

// git runs git with nothing that could make history look other than its commits
// say: no replaced objects, grafts or commit graph.
func (r *gitRepository) git(args ...string) []string {
	return append([]string{"--no-replace-objects", "-c", "core.commitGraph=false", "-c", "advice.graftFileDeprecated=false", "-C", r.at}, args...)
}

const branches, tags = "refs/heads/", "refs/tags/"

func (r *gitRepository) head(ctx context.Context) (all []guarded, err error) {
	out, err := r.output(ctx, r.git("for-each-ref", "--format=%(objectname) %(refname)", branches, tags)...)
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(out)) {
		id, ref, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " ")
		all = append(all, guarded{id, ref})
	}
	return checkIDs("git", all)
}

// is reports whether git ends with status 0: not if an object is not there either.
func (r *gitRepository) is(ctx context.Context, args ...string) (bool, error) {
	c := r.command(ctx, r.git(args...))
	c.Stderr = nil
	err := c.Run()
	if ctx.Err() == nil && errors.As(err, new(*exec.ExitError)) {
		return false, nil
	}
	return err == nil, err
}

// keeps: a branch has gone forward, or is deleted and contained in something else.
func (r *gitRepository) keeps(ctx context.Context, head map[guarded]bool, was guarded) (bool, error) {
	if !strings.HasPrefix(was.label, branches) {
		return false, nil
	}
	if is, err := r.is(ctx, "cat-file", "-e", was.id+"^{commit}"); !is {
		return false, err
	}
	for g := range head {
		if g.label == was.label {
			return r.is(ctx, "merge-base", "--is-ancestor", was.id, g.id)
		}
	}
	out, err := r.output(ctx, r.git("for-each-ref", "--count=1", "--contains="+was.id, branches, tags)...)
	return len(bytes.TrimSpace(out)) > 0, err
}

// filesRepository keeps regular files as they are.
type filesRepository struct {
	a  *app
	at string
}

func (r *filesRepository) head(ctx context.Context) (all []guarded, err error) {
	var failed error
	w := &walk{nameless: true, skip: func(path string, _ archive.Name, err error) {
		if errors.Is(err, errIrregular) {
			r.a.warn("%s: %v", quote(path), err)
			return
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", quote(path), err))
	}}
	if err := errors.Join(w.run(ctx, r.at), failed); err != nil {
		return nil, err
	}
	return hashAll(ctx, r.at, w.files)
}

func (r *filesRepository) keeps(context.Context, map[guarded]bool, guarded) (bool, error) {
	return false, nil
}

// hashAll returns the digest and the path below dir of each file.
func hashAll(ctx context.Context, dir string, files []found) (all []guarded, err error) {
	type one struct {
		path string
		sum  hashed
		err  error
	}
	each := make([]*one, len(files))
	for i, f := range files {
		each[i] = &one{path: f.path}
	}
	err = inOrder(len(each), eachOf(each), func(o *one) { o.sum, o.err = hashFile(ctx, o.path, nil) }, func(o *one) error {
		rel, err := filepath.Rel(dir, o.path)
		all = append(all, guarded{o.sum.Digest.String(), rel})
		return errors.Join(ctx.Err(), o.err, err)
	})
	return all, err
}
