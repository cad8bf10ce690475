package boltstore

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/tree"
)

const crashEnv, partEnv = "BOLTSTORE_TEST_CRASH", "BOLTSTORE_TEST_PART"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		applyForever(path)
	}
	os.Exit(m.Run())
}

const crashBatch = 150

// batchOf is the k-th batch of the child: names all over the tree.
func batchOf(k int) (ps []tree.Pair) {
	for i := range crashBatch {
		n := k*crashBatch + i
		ps = append(ps, tree.Pair{Name: fmt.Appendf(nil, "%08x-%d", uint32(n)*2654435761, n), Val: fmt.Appendf(nil, "v%d", n)})
	}
	return ps
}

// applyForever is the child: it says which batch begins, applies it, says
// which ended, from where the file stands.
func applyForever(path string) {
	s, err := Open(path, Options{Wait: 10 * time.Second})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	if part, err := strconv.Atoi(os.Getenv(partEnv)); err == nil {
		s.partRows = part
	}
	n, _ := s.Count()
	for k := int(n) / crashBatch; ; k++ {
		fmt.Println("begin", k)
		if _, _, err := s.Apply(context.Background(), batchOf(k)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("done", k)
	}
}

// TestKill kills the child with -9 in the midst of its work, again and again:
// the file holds whole batches only, all that were acknowledged among them; or,
// of a batch that is added in parts, the first parts.
func TestKill(t *testing.T) {
	for _, part := range []int{crashBatch, crashBatch / 3} {
		t.Run(fmt.Sprint(part), func(t *testing.T) { kills(t, part) })
	}
}

func kills(t *testing.T, part int) {
	t.Setenv(partEnv, strconv.Itoa(part))
	path := filepath.Join(t.TempDir(), "tree")
	r := rand.New(rand.NewPCG(3, 3))
	for round := range 20 {
		acknowledged := killed(t, path, 1+r.IntN(4), time.Duration(r.IntN(12000))*time.Microsecond)
		s := open(t, path)
		count, err := s.Count()
		if err != nil || int(count)%part != 0 || int(count)/crashBatch <= acknowledged {
			t.Fatalf("round %d: %d names, batch %d acknowledged, %v", round, count, acknowledged, err)
		}
		sound(t, s, expected(t, int(count)))
		s.Close()
	}
}

// expected is the root after count pairs: whole batches, and the first pairs of
// one more.
func expected(t *testing.T, count int) tree.Hash {
	t.Helper()
	m := &tree.Memory{}
	for k := 0; count > 0; k++ {
		ps, err := sorted(batchOf(k))
		if err != nil {
			t.Fatal(err)
		}
		n := min(count, len(ps))
		for _, p := range ps[:n] {
			_ = m.Put(p.Name, p.Val)
		}
		count -= n
	}
	return m.Root()
}

// killed runs the child until `begins` batches have begun, and kills it after
// a further delay. It returns the last batch acknowledged, or -1.
func killed(t *testing.T, path string, begins int, delay time.Duration) (acknowledged int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged = follow(t, out, func(seen int) {
		if seen == begins {
			time.AfterFunc(delay, func() { cmd.Process.Kill() })
		}
	})
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	return acknowledged
}

// follow reads what the child says, to its end.
func follow(t *testing.T, out io.Reader, begun func(seen int)) (acknowledged int) {
	acknowledged = -1
	lines := bufio.NewScanner(out)
	for seen := 0; lines.Scan(); {
		var word, rest string
		fmt.Sscan(lines.Text(), &word, &rest)
		switch word {
		case "begin":
			seen++
			begun(seen)
		case "done":
			acknowledged, _ = strconv.Atoi(rest)
		case "error":
			t.Fatal(lines.Text())
		}
	}
	return acknowledged
}
