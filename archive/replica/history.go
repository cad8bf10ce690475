package replica

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
)

const (
	recordSuffix      = ".record"
	certificateSuffix = ".certificate"
)

func (s *Store) historyPath(e archive.Epoch, suffix string) string {
	return filepath.Join(s.dir, historyDir, fmt.Sprintf("%020d%s", e, suffix))
}

// Record returns the record of an epoch and its certificate, parsed and
// verified against the roster, but not against the record after it. Epoch 0
// follows from the roster and has no certificate. The error is ErrMissing or
// ErrDamaged.
func (s *Store) Record(e archive.Epoch) (archive.EpochRecord, archive.Certificate, error) {
	if e == 0 {
		return archive.Genesis(s.roster), archive.Certificate{}, nil
	}
	record, certificate, err := s.rawRecord(e)
	if err != nil {
		return archive.EpochRecord{}, archive.Certificate{}, err
	}
	rec, cert, err := archive.VerifyRecord(s.roster, record, certificate)
	if err == nil && rec.Epoch != e {
		err = fmt.Errorf("record of epoch %d", rec.Epoch)
	}
	if err != nil {
		return archive.EpochRecord{}, archive.Certificate{}, fmt.Errorf("epoch %d: %w: %w", e, ErrDamaged, err)
	}
	return rec, cert, nil
}

// rawRecord returns the two files of an epoch as they lie there.
func (s *Store) rawRecord(e archive.Epoch) (record, certificate []byte, err error) {
	record, err = readFile(s.historyPath(e, recordSuffix), archive.MaxRecord)
	if err == nil {
		certificate, err = readFile(s.historyPath(e, certificateSuffix), archive.MaxCertificate)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("epoch %d: %w", e, err)
	}
	return record, certificate, nil
}

func readFile(path string, limit int) ([]byte, error) {
	err := checkRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return b, nil
}

// PutRecord keeps a record and its certificate, once they verify. Both are on
// the disk when it returns.
func (s *Store) PutRecord(rec archive.EpochRecord, cert archive.Certificate) error {
	if err := cert.Verify(s.roster, rec); err != nil {
		return fmt.Errorf("keep record: %w", err)
	}
	err := s.putBytes(s.historyPath(rec.Epoch, certificateSuffix), cert.Bytes())
	if err == nil {
		err = s.putBytes(s.historyPath(rec.Epoch, recordSuffix), rec.Bytes())
	}
	if err != nil {
		return fmt.Errorf("keep record of epoch %d: %w", rec.Epoch, err)
	}
	return nil
}

func (s *Store) putBytes(path string, b []byte) error {
	return s.putFile(path, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// Newest returns the highest epoch that has a record on the disk. It is a
// claim: Record says whether there is anything to it.
func (s *Store) Newest() archive.Epoch {
	entries, err := os.ReadDir(filepath.Join(s.dir, historyDir))
	if err != nil {
		return 0
	}
	for i := len(entries) - 1; i >= 0; i-- {
		digits, ok := strings.CutSuffix(entries[i].Name(), recordSuffix)
		if e, err := strconv.ParseUint(digits, 10, 64); ok && err == nil && len(digits) == 20 {
			return archive.Epoch(e)
		}
	}
	return 0
}
