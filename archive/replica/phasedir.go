package replica

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
	"github.com/bonafide-archive/bonafide/consensus"
)

// phaseDir is store/phase: what update phases leave for one another until an
// epoch is certified. Below it lie pieces/, named by digest, and a directory
// for each epoch and tick. Between phases it may have been anybody's: what is
// read from an earlier one is believed by digest or attestation only.
type phaseDir string

func (d phaseDir) store() disk.Root { return disk.Root(filepath.Dir(string(d))) }

func (d phaseDir) pieces() string { return filepath.Join(string(d), "pieces") }

func (d phaseDir) epoch(e archive.Epoch) string {
	return filepath.Join(string(d), strconv.FormatUint(uint64(e), 10))
}

func (d phaseDir) tick(e archive.Epoch, tick uint64) tickDir {
	return tickDir(filepath.Join(d.epoch(e), strconv.FormatUint(tick, 10)))
}

// drop removes what belongs to epochs up to e, which is certified.
func (d phaseDir) drop(e archive.Epoch) error {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, x := range entries {
		if n, bad := strconv.ParseUint(x.Name(), 10, 64); bad == nil && n > uint64(e) {
			continue
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(string(d), x.Name())))
	}
	return err
}

// piecePath is where the piece with the given digest lies.
func (d phaseDir) piecePath(digest [32]byte) string {
	return filepath.Join(d.pieces(), archive.Digest(digest).String())
}

// putPiece writes a piece durably, unless it is there already.
func (d phaseDir) putPiece(b []byte) error {
	digest := sha256.Sum256(b)
	if _, err := d.piece(consensus.Piece{Digest: digest, Size: uint32(len(b))}); err == nil {
		return nil
	}
	if err := d.store().Mkdir(d.pieces()); err != nil {
		return err
	}
	return writeDurably(d.piecePath(digest), b)
}

// piece reads a piece and checks it against its digest.
func (d phaseDir) piece(p consensus.Piece) ([]byte, error) {
	b, err := readBounded(d.piecePath(p.Digest), consensus.MaxPiece)
	if err != nil {
		return nil, err
	}
	if len(b) != int(p.Size) || sha256.Sum256(b) != p.Digest {
		return nil, fmt.Errorf("piece %x: %w", p.Digest[:8], archive.ErrIntegrity)
	}
	return b, nil
}

// body reads the pieces of a manifest one after another, in constant memory.
func (d phaseDir) body(m consensus.Manifest) io.Reader {
	return &bodyReader{dir: d, rest: m.Pieces}
}

type bodyReader struct {
	dir  phaseDir
	rest []consensus.Piece
	now  bytes.Reader
}

func (r *bodyReader) Read(b []byte) (int, error) {
	for r.now.Len() == 0 {
		if len(r.rest) == 0 {
			return 0, io.EOF
		}
		piece, err := r.dir.piece(r.rest[0])
		if err != nil {
			return 0, err
		}
		r.now.Reset(piece)
		r.rest = r.rest[1:]
	}
	return r.now.Read(b)
}

// tickDir holds one attempt: the boot in which it was joined, what this replica
// has said in it (so that a restarted process does not contradict itself), and
// what a later attempt needs to carry its record over.
type tickDir string

const (
	fileBoot       = "boot"       // reset.restart
	fileChallenges = "challenges" // what this replica asked each peer
	fileJoin       = "join"       // its own join
	fileVouched    = "vouched-"   // and a replica: the digest of the one join vouched for
	fileBlock      = "block"      // decided
	fileRecord     = "record"     // prepared
	filePrepare    = "prepare"    // prepare certificate, as consensus.Carried
)

func (d tickDir) engine() string { return filepath.Join(string(d), "engine") }

// begin empties the directory for an attempt joined in this boot. What may lie in
// the way, there or above, is removed.
func (d tickDir) begin(boot string) error {
	epoch := filepath.Dir(string(d))
	phase := phaseDir(filepath.Dir(epoch))
	store := phase.store()
	if err := store.Mkdir(epoch); err != nil {
		return err
	}
	if err := os.RemoveAll(string(d)); err != nil {
		return err
	}
	if err := store.Mkdir(string(d)); err != nil {
		return err
	}
	// Both may be there already and not be durable: who made them may have died.
	return errors.Join(d.write(fileBoot, []byte(boot)), syncDir(string(phase)), syncDir(string(store)))
}

func (d tickDir) write(name string, b []byte) error {
	return writeDurably(filepath.Join(string(d), name), b)
}

// maxPhaseFile bounds any file of an attempt.
const maxPhaseFile = int64(consensus.MaxBlock) + 1<<20

func (d tickDir) read(name string) ([]byte, error) {
	return readBounded(filepath.Join(string(d), name), maxPhaseFile)
}

// once writes b under name, or returns an error if something else stands there:
// what a replica has said it does not say differently.
func (d tickDir) once(name string, b []byte) error {
	old, err := d.read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.write(name, b)
	case err != nil:
		return err
	case !bytes.Equal(old, b):
		return fmt.Errorf("%s: said otherwise before in this attempt", name)
	}
	return nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	if err := checkRegular(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: %w: longer than %d bytes", filepath.Base(path), archive.ErrFormat, limit)
	}
	return b, err
}

// writeDurably puts b in place of path: whole or not at all, and on the disk
// when it returns.
func writeDurably(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := evict(path); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		os.Remove(path) // what is there to see would pass for durable
		return err
	}
	return nil
}
