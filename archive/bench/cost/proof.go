package cost

import "math"

// ProofBytes is the mean length of a proof of membership (tree/SPEC.md): the count,
// the leaf with its name and value, and for each node above it a byte and a digest.
func ProofBytes(names, name, value float64) float64 {
	const count, leaf, node = 8, 1 + 2 + 2, 1 + 32
	return count + leaf + name + value + node*Depth(names)
}

// cut is the probability that an item begins a chunk one level up: six zero bits.
const cut = 1.0 / 64

// widest is the largest chunk that matters: wider ones come once in 10^17.
const widest = 2560

// Depth is the mean number of nodes above a leaf of a tree of so many names. A level
// adds the path within the item's chunk, and hands the number of its chunks to the
// next, until one is left.
func Depth(names float64) float64 {
	inner, depth := paths(), 0.0
	for names > 1 {
		low := math.Floor(names) // a number of items that is no whole one is a mean
		part := names - low
		depth += (1-part)*within(low, inner) + part*within(low+1, inner)
		if names-1 < 1e-6 {
			break
		}
		names = 1 + (names-1)*cut
	}
	return depth
}

// within is the mean path, within its chunk, of any of so many items of a level. A
// chunk of s items begins with the first item or at a cut, and ends likewise.
func within(items float64, inner []float64) float64 {
	mean := 0.0
	for s := 1.0; s <= min(items, widest); s++ {
		whole := math.Pow(1-cut, s-1)
		places := whole // all items are one chunk
		if s < items {
			places = whole * (2*cut + (items-s-1)*cut*cut) // at an end, or between two cuts
		}
		mean += places * s / items * inner[int(s)]
	}
	return mean
}

// paths are the mean paths of the leaves of RFC 6962 trees, by their number: of n,
// the largest power of two below n goes to the left.
func paths() []float64 {
	sum := make([]float64, widest+1)
	for n, k := 2, 1; n <= widest; n++ {
		if 2*k < n {
			k *= 2
		}
		sum[n] = sum[k] + sum[n-k] + float64(n)
	}
	for n := 1; n <= widest; n++ {
		sum[n] /= float64(n)
	}
	return sum
}
