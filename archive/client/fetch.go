package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// Fetch writes a content to w, from whichever replicas serve it. Nothing
// reaches w before all bytes are here and their digest is right.
func (c *Client) Fetch(ctx context.Context, content archive.Content, w io.Writer) error {
	f, err := os.CreateTemp("", "bonafide-*")
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := c.newDownload(content, f).run(ctx); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	_, err = io.Copy(w, f)
	return err
}

// FetchFile makes the file at path hold a content. It writes beside path and
// renames once the digest is right and the bytes are on the disk: path is never
// there in part. It replaces a regular file and nothing else. What was fetched
// when it is interrupted stays beside path, under a name made of the digest, and
// the next call goes on from there.
func (c *Client) FetchFile(ctx context.Context, content archive.Content, path string) error {
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return fmt.Errorf("%s: %w", path, errNotRegular)
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()
	return c.fetchIn(ctx, content, root, filepath.Base(path))
}

// FetchIn is FetchFile for a path in root, which no link leads out of. It makes
// the directories on the way. A link at the end of the path is no regular file.
func (c *Client) FetchIn(ctx context.Context, content archive.Content, root *os.Root, path string) error {
	if fi, err := root.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return &fs.PathError{Op: "replace", Path: path, Err: errNotRegular}
	}
	if err := root.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	return c.fetchIn(ctx, content, root, path)
}

var errNotRegular = errors.New("not a regular file")

// fetchIn brings a content to a path in root.
func (c *Client) fetchIn(ctx context.Context, content archive.Content, root *os.Root, path string) error {
	f, name, err := openPart(content, root, path)
	if err != nil {
		return err
	}
	defer f.Close()
	kept, err := c.fetchInto(ctx, content, f, name)
	if err == nil {
		err = root.Rename(name, path)
	}
	if err != nil {
		if !kept {
			root.Remove(name)
		}
		return err
	}
	return syncIn(root, filepath.Dir(path))
}

// fetchInto brings a content into f, called name, and onto the disk. When it
// fails, kept says whether something in f is worth keeping.
func (c *Client) fetchInto(ctx context.Context, content archive.Content, f *os.File, name string) (kept bool, err error) {
	d := c.newDownload(content, f)
	if err := d.run(ctx); err != nil {
		return d.kept && name == partName(content, name), err
	}
	return false, f.Sync()
}

// syncIn makes the entries of a directory in root durable.
func syncIn(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// createBeside makes a new file in the directory of a path in root, with the
// permissions that a new file at the path would get, and returns its name.
func createBeside(root *os.Root, path string) (*os.File, string, error) {
	for {
		name := filepath.Join(filepath.Dir(path), ".bonafide-"+rand.Text()[:12])
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o666)
		if !errors.Is(err, fs.ErrExist) {
			return f, name, err
		}
	}
}

// download is one content on its way into a file.
type download struct {
	c    *Client
	want archive.Content
	f    *os.File
	hash hash.Hash // of the bytes in f
	done uint64    // how many
	kept bool      // f holds blocks that are right, and nothing else but zeros

	from   map[*replica]bool // who sent them
	bad    map[uint32]error  // why a replica is not asked again
	errs   map[uint32]error  // why it last failed
	blamed map[uint32]int    // damaged blocks that a replica sent
	single *replica          // when blame is sought: the only one to ask
	moved  time.Time         // when a byte last came
}

func (c *Client) newDownload(want archive.Content, f *os.File) *download {
	return &download{c: c, want: want, f: f, bad: make(map[uint32]error), errs: make(map[uint32]error), blamed: make(map[uint32]int)}
}

// run fills the file: by block, or else as a whole.
func (d *download) run(ctx context.Context) error {
	if err := d.byBlocks(ctx); !errors.Is(err, errNoBlocks) {
		return err
	}
	clear(d.bad)
	d.kept = false
	return d.asWhole(ctx)
}

// asWhole fills the file, hashing as the bytes come. A source that fails or
// stalls is left for another, which goes on where it stopped; when the digest of
// the whole is wrong, it starts again, one source at a time, so that the liar is
// found.
func (d *download) asWhole(ctx context.Context) error {
	for {
		if err := d.restart(); err != nil {
			return err
		}
		if err := d.fill(ctx); err != nil {
			return err
		}
		if archive.Digest(d.hash.Sum(nil)) == d.want.Digest {
			return nil
		}
		if err := d.blame(); err != nil {
			return err
		}
	}
}

func (d *download) restart() error {
	d.hash, d.done, d.from, d.moved = sha256.New(), 0, make(map[*replica]bool), time.Now()
	if err := d.f.Truncate(0); err != nil {
		return err
	}
	_, err := d.f.Seek(0, io.SeekStart)
	return err
}

// blame is called when the digest is wrong: if one replica sent everything it
// is asked no more, if several did, from now on one is asked at a time.
func (d *download) blame() error {
	wrong := fmt.Errorf("content %w: sent other bytes", ErrIntegrity)
	for r := range d.from {
		if len(d.from) == 1 {
			d.c.Log.Warn("replica sent wrong content", "replica", r.ID, "content", d.want.Digest.String())
			d.bad[r.ID] = wrong
			d.c.demote(r)
		}
	}
	if len(d.from) == 0 {
		return fmt.Errorf("%w: a content of no bytes with digest %s", ErrIntegrity, d.want.Digest)
	}
	return d.nextSingle()
}

// nextSingle chooses the one source of the next try.
func (d *download) nextSingle() error {
	d.single = nil
	for _, r := range d.c.preferred() {
		if d.bad[r.ID] == nil {
			d.single = r
			return nil
		}
	}
	return d.failure()
}

// fill brings the file to its full size.
func (d *download) fill(ctx context.Context) error {
	wait := backoffMin
	for d.done < d.want.Size {
		before := d.done
		err := d.some(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errFile):
			return err
		case err == nil || d.done > before:
			wait = backoffMin
		case d.single != nil:
			if err := d.giveUp(err); err != nil {
				return err
			}
		case time.Since(d.moved) >= d.c.Timeout || !d.hope():
			return err
		default:
			pause(ctx, wait)
			wait = min(2*wait, backoffMax)
		}
	}
	return nil
}

// giveUp leaves the one source asked for another, from the start.
func (d *download) giveUp(why error) error {
	d.bad[d.single.ID] = why
	if err := d.nextSingle(); err != nil {
		return err
	}
	return d.restart()
}

// hope reports whether some source may still send what is missing.
func (d *download) hope() bool {
	for _, r := range d.usable() {
		if err := d.errs[r.ID]; err == nil || transient(err) {
			return true
		}
	}
	return false
}

func (d *download) usable() []*replica {
	if d.single != nil {
		return []*replica{d.single}
	}
	var rs []*replica
	for _, r := range d.c.preferred() {
		if d.bad[r.ID] == nil {
			rs = append(rs, r)
		}
	}
	return rs
}

// errFile reports that the trouble is on this side.
var errFile = errors.New("write content")

// some appends what one source sends until it ends or fails.
func (d *download) some(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	offset := d.done
	body, r, err := first(ctx, d.usable(), func(ctx context.Context, r *replica) (io.ReadCloser, error) {
		return d.c.openContent(ctx, r, d.want, offset)
	}, func(b io.ReadCloser) { b.Close() })
	if err != nil {
		d.note(err)
		return d.failure()
	}
	defer body.Close()
	return d.copy(body, r)
}

func (d *download) note(err error) {
	var nq *NoQuorumError
	if errors.As(err, &nq) {
		for id, err := range nq.Replicas {
			d.errs[id] = err
		}
	}
}

func (d *download) failure() error {
	all := make(map[uint32]error)
	for _, m := range []map[uint32]error{d.errs, d.bad} {
		for id, err := range m {
			all[id] = err
		}
	}
	return &NoQuorumError{Need: 1, Replicas: all}
}

// openContent opens a content at offset, if the replica has one of that size.
func (c *Client) openContent(ctx context.Context, r *replica, want archive.Content, offset uint64) (io.ReadCloser, error) {
	body, size, err := r.peer.Content(ctx, want.Digest, int64(offset))
	if err != nil {
		return nil, inTime(err, c.Timeout)
	}
	if size < 0 || uint64(size) != want.Size {
		body.Close()
		return nil, fmt.Errorf("content %w: %d bytes, want %d", ErrIntegrity, size, want.Size)
	}
	return body, nil
}

// copy appends body, as long as it comes and is not too long.
func (d *download) copy(body io.Reader, r *replica) error {
	buf := make([]byte, 256<<10)
	for d.done < d.want.Size {
		n, err := body.Read(buf[:min(uint64(len(buf)), d.want.Size-d.done)])
		if n > 0 {
			if werr := d.write(buf[:n], r); werr != nil {
				return werr
			}
		}
		if err != nil && d.done < d.want.Size {
			return d.lost(r, err)
		}
	}
	return nil
}

func (d *download) write(b []byte, r *replica) error {
	if _, err := d.f.Write(b); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	d.hash.Write(b)
	d.done += uint64(len(b))
	d.from[r], d.moved = true, time.Now()
	d.c.tell(Progress{Stage: "fetch", Digest: d.want.Digest, Replica: r.ID, Done: d.done, Total: d.want.Size})
	return nil
}

// lost notes why r stopped sending, and lets others go before it.
func (d *download) lost(r *replica, err error) error {
	if err == io.EOF {
		err = fmt.Errorf("content: ended after %d of %d bytes", d.done, d.want.Size)
	}
	d.errs[r.ID] = err
	d.c.demote(r)
	return err
}
