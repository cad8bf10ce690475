package content

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

var (
	scale  = flag.Int("scale", 16, "benchmarks use one file in so many of the corpora; 1: all of 2,048 x 512 KiB and 100,000 x 1 KiB")
	rounds = flag.Int("rounds", 3, "rounds of each benchmark; the fastest counts")
)

// corpus is files to keep, as users have them.
type corpus struct {
	name    string
	n, size int
}

func corpora() []corpus {
	return []corpus{{"large", max(1, 2048 / *scale), 512 << 10}, {"small", max(1, 100_000 / *scale), 1 << 10}}
}

// write writes the corpus as plain files, with lists for the tools to check
// them by.
func (c corpus) write(b *testing.B, dir string) []Bytes {
	b.Helper()
	var all []Bytes
	var sums, deep bytes.Buffer
	fmt.Fprint(&deep, "%%%% HASHDEEP-1.0\n%%%% size,sha256,filename\n")
	for i := range c.n {
		f := contentOf(i, c.size)
		path := filepath.Join(dir, fmt.Sprintf("%03d", i/1000), fmt.Sprint(i))
		if err := errorsOf(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, f.Bytes, 0o600)); err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(&sums, "%s  %s\n", f.Digest, path)
		fmt.Fprintf(&deep, "%d,%s,%s\n", c.size, f.Digest, path)
		all = append(all, f)
	}
	if err := errorsOf(os.WriteFile(dir+".sums", sums.Bytes(), 0o600), os.WriteFile(dir+".deep", deep.Bytes(), 0o600)); err != nil {
		b.Fatal(err)
	}
	return all
}

func errorsOf(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// keep puts all contents as uploads bring them: small ones in batches, large
// ones a few at a time.
func keep(b *testing.B, s *Store, all []Bytes) {
	b.Helper()
	if len(all[0].Bytes) <= Small {
		for batch := range slices.Chunk(all, 1000) {
			if _, err := s.PutAll(batch); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(all, (len(all)+3)/4) {
		wg.Go(func() {
			for _, c := range part {
				if _, err := s.Put(b.Context(), c.Digest, int64(len(c.Bytes)), bytes.NewReader(c.Bytes)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// audit opens a store anew, finds all contents and reads them.
func audit(b *testing.B, dir string, all []archive.Digest, cached bool) {
	s := open(b, dir)
	var items []Item
	locate := s.Locator()
	for _, d := range all {
		size, place, err := locate(d)
		if err != nil {
			b.Fatal(err)
		}
		items = append(items, Item{d, place, size})
	}
	slices.SortFunc(items, func(x, y Item) int { return cmp.Compare(x.Place, y.Place) })
	err := s.CheckAll(b.Context(), items, Checking{cached: cached, Wrong: func(it Item, err error) { b.Error(it.Digest, err) }})
	if err != nil {
		b.Fatal(err)
	}
}

// rival is a way to do the work.
type rival struct {
	name string
	run  func()
	best time.Duration
}

func command(b *testing.B, name string, args ...string) func() {
	return func() {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "RESTIC_PASSWORD=x")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out[max(0, len(out)-500):])
		}
	}
}

func installed(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

// race runs all rivals, one after the other, so many times, and reports the
// fastest run of each, the first as bytes per second, the others as multiples
// of its time.
func race(b *testing.B, bytes int64, before func(), all []rival) {
	b.Helper()
	for i := range all {
		all[i].best = math.MaxInt64
	}
	for b.Loop() {
		for range *rounds {
			for i := range all {
				before()
				start := time.Now()
				all[i].run()
				all[i].best = min(all[i].best, time.Since(start))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(bytes)/1e6/all[0].best.Seconds(), "MB/s")
	for _, r := range all[1:] {
		b.ReportMetric(float64(r.best)/float64(all[0].best), r.name+"/ours")
	}
}

// BenchmarkAudit compares an audit of contents with what others do to check the
// same bytes: from the page cache (warm), off the disk by ours and from the
// cache by the others (disk), and with cold caches for all.
func BenchmarkAudit(b *testing.B) {
	for _, c := range corpora() {
		dir := b.TempDir()
		plain, store, repo := filepath.Join(dir, "plain"), filepath.Join(dir, "store"), filepath.Join(dir, "repo")
		files := c.write(b, plain)
		s := open(b, store)
		keep(b, s, files)
		all := digests(files)
		files = nil
		rivals := []rival{{name: "sha256sum", run: command(b, "sha256sum", "-c", "--quiet", plain+".sums")}}
		if installed("hashdeep") {
			rivals = append(rivals, rival{name: "hashdeep", run: command(b, "hashdeep", "-c", "sha256", "-a", "-k", plain+".deep", "-r", plain)})
		}
		if installed("restic") {
			command(b, "restic", "-q", "init", "-r", repo)()
			command(b, "restic", "-q", "backup", "-r", repo, plain)()
			rivals = append(rivals, rival{name: "restic", run: command(b, "restic", "-q", "check", "--read-data", "-r", repo)})
		}
		unix.Sync()
		for _, state := range []string{"warm", "disk", "cold"} {
			b.Run(c.name+"/"+state, func(b *testing.B) {
				before := func() {}
				if state == "cold" {
					before = func() { dropCaches(b) }
				}
				ours := rival{name: "ours", run: func() { audit(b, store, all, state == "warm") }}
				ours.run() // into the cache
				race(b, int64(c.n*c.size), before, append([]rival{ours}, rivals...))
			})
		}
	}
}

func dropCaches(b *testing.B) {
	b.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		b.Skip("caches cannot be dropped: ", err)
	}
}

// BenchmarkPut compares the keeping of contents, every one of them on the disk
// when it is acknowledged, with a backup of the same files and with writing one
// file of their length.
func BenchmarkPut(b *testing.B) {
	for _, c := range corpora() {
		b.Run(c.name, func(b *testing.B) {
			dir := b.TempDir()
			plain := filepath.Join(dir, "plain")
			files := c.write(b, plain)
			n := 0
			fresh := func() string { n++; return filepath.Join(dir, fmt.Sprint(n)) }
			rivals := []rival{
				{name: "ours", run: func() { keep(b, open(b, fresh()), files) }},
				{name: "one-file", run: func() { oneFile(b, fresh(), files) }},
			}
			if c.n <= 10_000 { // more would take all day
				rivals = append(rivals, rival{name: "a-file-each", run: func() { fileEach(b, fresh(), files) }})
			}
			if installed("restic") {
				rivals = append(rivals, rival{name: "restic", run: func() {
					repo := fresh()
					command(b, "restic", "-q", "init", "-r", repo)()
					command(b, "restic", "-q", "backup", "-r", repo, plain)()
				}})
			}
			race(b, int64(c.n*c.size), unix.Sync, rivals)
		})
	}
}

// oneFile writes all as one file, with one fsync: what no store can beat.
func oneFile(b *testing.B, path string, all []Bytes) {
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range all {
		if _, err := f.Write(c.Bytes); err != nil {
			b.Fatal(err)
		}
	}
	if err := errorsOf(f.Sync(), f.Close()); err != nil {
		b.Fatal(err)
	}
}

// fileEach keeps all as large contents are kept, four at a time.
func fileEach(b *testing.B, dir string, all []Bytes) {
	s := open(b, dir)
	var wg sync.WaitGroup
	for part := range slices.Chunk(all, (len(all)+3)/4) {
		wg.Go(func() {
			for _, c := range part {
				if _, err := s.putPlain(c.Digest, int64(len(c.Bytes)), io.Reader(bytes.NewReader(c.Bytes))); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkLoad measures how long it takes to make the index from the packs.
func BenchmarkLoad(b *testing.B) {
	c := corpora()[1]
	dir := b.TempDir()
	var files []Bytes
	for i := range c.n {
		files = append(files, contentOf(i, c.size))
	}
	keep(b, open(b, dir), files)
	b.ResetTimer()
	for b.Loop() {
		s := open(b, dir)
		if _, err := s.Size(files[0].Digest); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(c.n), "ns/content")
}
