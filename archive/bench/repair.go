package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/replica"
)

// Repair is an audit with repair of a replica that has lost a share of its pages.
type Repair struct {
	Loss  int  `json:"loss"`  // percent
	Lost  Stat `json:"lost"`  // bytes
	Found Stat `json:"found"` // damages: ranges of the tree, and contents
	Took  Stat `json:"took"`  // seconds
}

const page = 4096

// repairs damages one replica after the other and times how each audits and repairs
// itself from the others.
func (r *run) repairs(ctx context.Context, res *Result) error {
	for i, loss := range r.Losses {
		x := Repair{Loss: loss}
		for k := range r.Runs {
			r.show("audits and repairs", i*r.Runs+k, len(r.Losses)*r.Runs)
			if err := r.repair(ctx, &x, r.Dirs[k%len(r.Dirs)], rand.New(rand.NewPCG(uint64(loss), uint64(k)))); err != nil {
				return fmt.Errorf("repair of a loss of %d %%: %w", loss, err)
			}
		}
		res.Repairs = append(res.Repairs, x)
	}
	r.show("audits and repairs", len(r.Losses)*r.Runs, len(r.Losses)*r.Runs)
	return nil
}

func (r *run) repair(ctx context.Context, x *Repair, dir string, rnd *rand.Rand) error {
	if _, err := r.audit(ctx, dir, false); err != nil { // it was sound, and audits nothing itself
		return fmt.Errorf("before: %w", err)
	}
	lost, err := lose(filepath.Join(dir, "store"), x.Loss, rnd)
	if err != nil {
		return err
	}
	began := time.Now()
	rp, err := r.audit(ctx, dir, true)
	took := time.Since(began)
	switch {
	case err != nil:
		return err
	case x.Loss == 0 && rp.Damaged > 0, x.Loss >= 10 && rp.Damaged == 0: // of fewer pages, all may be unused
		return fmt.Errorf("%d damages found after a loss of %d bytes", rp.Damaged, lost)
	}
	after, err := r.audit(ctx, dir, false)
	if err == nil && after.Damaged > 0 {
		err = fmt.Errorf("%w: %d damages after the repair", archive.ErrIntegrity, after.Damaged)
	}
	x.Lost.add(float64(lost))
	x.Found.add(float64(rp.Damaged))
	x.Took.add(took.Seconds())
	return err
}

// audit has a replica audit itself and checks the report. One that is at it
// already is asked again.
func (r *run) audit(ctx context.Context, dir string, mend bool) (rp replica.Report, err error) {
	for {
		rp, err = replica.AuditServed(ctx, dir, replica.AuditOptions{Repair: mend}, nil)
		if err == nil || mend || ctx.Err() != nil {
			break
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return rp, err
		}
	}
	switch {
	case err != nil:
		return rp, err
	case rp.Head != r.rec.head || rp.Root != r.rec.root || rp.Names != r.rec.names || rp.Records != uint64(r.rec.epoch):
		return rp, fmt.Errorf("%w: audited epoch %d of %d names, want %d of %d", archive.ErrIntegrity, rp.Epoch, rp.Names, r.rec.epoch, r.rec.names)
	case !rp.Sound():
		return rp, fmt.Errorf("%w: %d damages, %d repaired", archive.ErrIntegrity, rp.Damaged, rp.Repaired)
	case rp.Contents == 0:
		return rp, errors.New("no content was audited")
	}
	return rp, nil
}

// lose zeroes a share of the pages of a store's tree and contents, on the disk, and
// returns how many bytes.
func lose(store string, percent int, rnd *rand.Rand) (lost int64, err error) {
	for _, part := range []string{"tree.db", "packs", "content"} {
		err := filepath.WalkDir(filepath.Join(store, part), func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			n, err := zero(path, percent, rnd)
			lost += n
			return err
		})
		if err != nil {
			return lost, err
		}
	}
	return lost, nil
}

func zero(path string, percent int, rnd *rand.Rand) (lost int64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, errors.Join(err, f.Close())
	}
	pages := int(info.Size()+page-1) / page
	for _, at := range rnd.Perm(pages)[:pages*percent/100] {
		off := int64(at) * page
		n := min(page, info.Size()-off)
		if _, err := f.WriteAt(make([]byte, n), off); err != nil {
			return lost, errors.Join(err, f.Close())
		}
		lost += n
	}
	return lost, errors.Join(f.Sync(), f.Close())
}

func treeSize(dir string) int64 {
	info, err := os.Stat(filepath.Join(dir, "store", "tree.db"))
	if err != nil {
		return 0
	}
	return info.Size()
}
