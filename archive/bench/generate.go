package bench

//go:generate go run ./write
