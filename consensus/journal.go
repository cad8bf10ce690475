package consensus

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	cmt "github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/crypto"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/privval"
)

// journal is the engine's directory. Its files, in the order of their making:
//
//	votes     the last vote signed, replaced and synced before it is sent
//	instance  whose votes they are, in hex
//	wal/      the engine's messages, synced before own ones are sent
//	decided   the block, synced before the engine acts on the decision
type journal struct {
	dir  string
	last privval.FilePVLastSignState
}

func (j *journal) path(name string) string { return filepath.Join(j.dir, name) }

func (j *journal) wal() string { return j.path("wal/wal") }

// MayResume says whether Agree would run in dir: because it is new, because
// nothing was signed from it yet, or because its votes can be continued. If not,
// the attempt is over for this replica: it waits for its peers' decision.
func MayResume(dir string) bool {
	_, _, err := readJournal(dir)
	return err == nil
}

// openJournal returns dir ready for inst: as it was left if votes were signed
// there, else wiped and made new.
func openJournal(dir string, inst [32]byte) (*journal, error) {
	j, owner, err := readJournal(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case owner == inst:
		return j, nil
	case j.last.Height > 0:
		return nil, fmt.Errorf("%w: it holds votes of another instance", ErrSpent)
	}
	return j, j.create(inst)
}

// readJournal judges dir without changing it, and returns whose votes it holds;
// the zero instance: nothing there that counts.
func readJournal(dir string) (j *journal, inst [32]byte, err error) {
	j = &journal{dir: dir}
	votes, err := j.readVotes()
	if err != nil {
		return nil, inst, err
	}
	owner, err := os.ReadFile(j.path("instance"))
	switch {
	case errors.Is(err, fs.ErrNotExist) && j.last.Height == 0:
		return j, inst, nil
	case err != nil || !votes:
		return nil, inst, fmt.Errorf("%w: a file is missing", ErrSpent)
	case len(owner) != hex.EncodedLen(len(inst)):
		return nil, inst, fmt.Errorf("%w: its instance is unreadable", ErrSpent)
	}
	if _, err := hex.Decode(inst[:], owner); err != nil {
		return nil, inst, fmt.Errorf("%w: its instance is unreadable", ErrSpent)
	}
	if j.decided() != nil {
		return j, inst, nil
	}
	if j.last.Height == 0 {
		return j, [32]byte{}, nil
	}
	return j, inst, j.checkWAL()
}

// readVotes says whether the last vote is there; unreadable is an error.
func (j *journal) readVotes() (bool, error) {
	b, err := os.ReadFile(j.path("votes"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := cmtjson.Unmarshal(b, &j.last); err != nil {
		return false, fmt.Errorf("%w: its votes are unreadable", ErrSpent)
	}
	return true, nil
}

// checkWAL refuses a log without its beginning, or with the end of a block that
// was not kept: the engine would start from nothing, and forget what it is locked on.
func (j *journal) checkWAL() error {
	older, err := filepath.Glob(j.wal() + ".[0-9]*")
	if err != nil {
		return err
	}
	var ends []int64
	for _, f := range append(older, j.wal()) {
		got, err := heightsEnded(f)
		if err != nil {
			return err
		}
		ends = append(ends, got...)
	}
	if !slices.Equal(ends, []int64{onlyHeight - 1}) {
		return fmt.Errorf("%w: its log ends heights %v", ErrSpent, ends)
	}
	return nil
}

// heightsEnded lists the marks in a file of the log, up to the torn record at
// its end that a kill may leave.
func heightsEnded(path string) (ends []int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSpent, err)
	}
	defer f.Close()
	dec := cmt.NewWALDecoder(bufio.NewReader(f))
	for {
		m, err := dec.Decode()
		if err != nil {
			return ends, nil
		}
		if end, ok := m.Msg.(cmt.EndHeightMessage); ok {
			ends = append(ends, end.Height)
		}
	}
}

// create makes the journal anew. The instance goes first and comes last, so
// that a journal half wiped or half made counts as none.
func (j *journal) create(inst [32]byte) error {
	if err := os.RemoveAll(j.path("instance")); err != nil {
		return err
	}
	if err := os.RemoveAll(j.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	j.last = privval.FilePVLastSignState{}
	votes, err := cmtjson.Marshal(j.last)
	if err != nil {
		return err
	}
	if err := j.write("votes", votes); err != nil {
		return err
	}
	return j.write("instance", hex.AppendEncode(nil, inst[:]))
}

// decided returns the block decided here, or nil.
func (j *journal) decided() []byte {
	f, err := os.Open(j.path("decided"))
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() > int64(MaxBlock) {
		return nil
	}
	b, err := os.ReadFile(j.path("decided"))
	if err != nil {
		return nil
	}
	return b
}

// write replaces the file name in one step, synced.
func (j *journal) write(name string, b []byte) error {
	f, err := os.CreateTemp(j.dir, name+".tmp*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = bytes.NewReader(b).WriteTo(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), j.path(name)); err != nil {
		return err
	}
	return syncDir(j.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// validator signs with key by the engine's own rules against contradicting
// oneself, starting from the last vote in the journal. The key is never written:
// only the last vote is, before the signature leaves.
func (j *journal) validator(key crypto.PrivKey) *privval.FilePV {
	pv := privval.NewFilePV(key, "", j.path("votes"))
	s := &pv.LastSignState
	s.Height, s.Round, s.Step = j.last.Height, j.last.Round, j.last.Step
	s.Signature, s.SignBytes = j.last.Signature, j.last.SignBytes
	return pv
}
