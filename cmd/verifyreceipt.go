package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// checked is what verify prints of a receipt.
type checked struct {
	Kind    string         `json:"kind"`
	Name    archive.Name   `json:"name"`
	Digest  archive.Digest `json:"sha256"`
	Size    uint64         `json:"size"`
	Bound   archive.Epoch  `json:"bound"`
	Epoch   archive.Epoch  `json:"epoch"`
	Time    time.Time      `json:"time"`
	Archive archive.Digest `json:"archive"`
	MAS     string         `json:"mas"`
	Receipt string         `json:"receipt"`
	File    string         `json:"file,omitempty"`
}

// verifyReceipts checks each receipt, and the file that goes with it. All are
// checked, whatever comes of one.
func (a *app) verifyReceipts(ctx context.Context, v verifying, files []string) error {
	r, err := a.roster()
	if err != nil {
		return about("verify", "", err)
	}
	errs := make([]error, len(v.receipts))
	for i, receipt := range v.receipts {
		file := argOr(files, i, argOr(files, 0, ""))
		errs[i] = about("verify", receipt, a.verifyReceipt(ctx, v, r, receipt, file))
		if errs[i] != nil && len(errs) > 1 && !v.status {
			a.warn("%v", errs[i])
		}
	}
	return v.silence(gravest(errs))
}

// gravest makes one error of several receipts': what is proven wrong goes before
// what could not be checked.
func gravest(errs []error) error {
	var worst error
	failed := uint64(0)
	for _, err := range errs {
		if err != nil {
			failed++
		}
		if worst == nil || exitStatus(worst) != exitIntegrity && exitStatus(err) == exitIntegrity {
			worst = err
		}
	}
	if worst == nil || len(errs) == 1 {
		return worst
	}
	return withStatus(exitStatus(worst), fmt.Errorf("%d of %s do not verify", failed, count(uint64(len(errs)), "receipt")))
}

func (a *app) verifyReceipt(ctx context.Context, v verifying, r *archive.Roster, receipt, file string) error {
	rc, err := loadReceipt(receipt)
	if err != nil {
		return err
	}
	entry, rec, err := rc.Verify(r)
	if err != nil {
		return err
	}
	if file != "" {
		have, err := a.describe(ctx, file)
		if err != nil {
			return err
		}
		if err := same(entry.Content, have, file); err != nil {
			return err
		}
	}
	if v.status {
		return nil
	}
	m := checked{
		Kind: "receipt", Name: rc.Name, Digest: entry.Digest, Size: entry.Size, Bound: entry.Epoch,
		Epoch: rec.Epoch, Time: rec.Time, Archive: rec.Archive, MAS: string(r.Profile()), Receipt: receipt, File: file,
	}
	return a.result(m, "%s  %s: bound in epoch %d, proven as of epoch %d of %s, by archive %s; MAS profile %s",
		m.Digest, quote(m.Name), m.Bound, m.Epoch, clock(m.Time), m.Archive, m.MAS)
}

func loadReceipt(file string) (archive.Receipt, error) {
	b, err := readFile(file, archive.MaxReceipt)
	if err != nil {
		return archive.Receipt{}, unreadable(err)
	}
	return archive.ParseReceipt(b)
}

// unreadable gives a file that was named but is not there its status.
func unreadable(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return withStatus(exitUsage, err)
	}
	return err
}
