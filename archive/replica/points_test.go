package replica

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// changing are the calls by which an update phase changes something that
// outlives it, as package or field and function; the field alone stands for any
// value that ends in it. A tree opened to be written is made if there is none.
var changing = []string{
	"dir.begin", "dir.write", "dir.once", "dir.drop", "dir.putPiece", "p.storeSlots", "a.storeSlots", "MAS.Store", "MAS.Advance", "MAS.Lock",
	"store.PutRecord", "store.Pending", "store.thinPending", "store.OpenTree(false)", "t.Apply", "boltstore.Build", "p.rebuild", "p.repair", "OpenStore", "consensus.Agree",
}

// within are the functions that are called at points only, with what they call.
var within = []string{"storeSlots", "rebuild", "repair"}

// phaseFiles hold the update phase. Others are of the service process, or hold
// what the phase calls.
var phaseFiles = []string{
	"agree.go", "attempt.go", "board.go", "catchup.go", "greet.go", "join.go", "merge.go", "open.go", "phase.go", "propose.go", "voucher.go",
	"votes.go",
}

// Every line of the update phase that changes something durable has a named
// point, and the crash table has a row for each.
func TestEveryChangeHasAPoint(t *testing.T) {
	points, calls := make(map[string]bool), 0
	for _, name := range phaseFiles {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		must(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || slices.Contains(within, fn.Name.Name) {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				name := callee(call)
				if strings.HasSuffix(name, ".durable") {
					point, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
					must(t, err)
					if points[point] {
						t.Errorf("%s: two changes are named %q", fn.Name.Name, point)
					}
					points[point] = true
					return false // all inside is at a point
				}
				if slices.ContainsFunc(changing, func(c string) bool { return name == c || strings.HasSuffix(name, "."+c) }) {
					t.Errorf("%s: %s changes something durable, at no point", fn.Name.Name, name)
				}
				calls++
				return true
			})
		}
	}
	var rows []string
	for _, c := range crashes {
		rows = append(rows, strings.SplitN(c.point, " ", 2)[1])
	}
	slices.Sort(rows)
	rows = slices.DeleteFunc(slices.Compact(rows), func(r string) bool { return r == inEngine })
	if got := slices.Sorted(maps.Keys(points)); calls == 0 || !slices.Equal(got, rows) {
		t.Errorf("points %q\nrows %q", got, rows)
	}
}

// callee returns the selector of a call, as far as it is made of names, and its one
// argument if that is false.
func callee(c *ast.CallExpr) string {
	var parts []string
	suffix := ""
	if len(c.Args) == 1 {
		if x, ok := c.Args[0].(*ast.Ident); ok && x.Name == "false" {
			suffix = "(false)"
		}
	}
	for x := c.Fun; ; {
		switch y := x.(type) {
		case *ast.SelectorExpr:
			parts = append(parts, y.Sel.Name)
			x = y.X
			continue
		case *ast.Ident:
			parts = append(parts, y.Name)
		}
		slices.Reverse(parts)
		return strings.Join(parts, ".") + suffix
	}
}
