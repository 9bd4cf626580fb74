package console

import "fmt"

// Bytes returns a number of bytes in at most five characters, in units of 1024.
func Bytes(n uint64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	value := float64(n)
	for _, unit := range "KMGTPE" {
		value /= 1024
		if value < 9.995 {
			return fmt.Sprintf("%.2f%c", value, unit)
		}
		if value < 99.95 {
			return fmt.Sprintf("%.1f%c", value, unit)
		}
		if value < 999.5 {
			return fmt.Sprintf("%.0f%c", value, unit)
		}
	}
	return fmt.Sprintf("%.0fE", value) // never reached: 2^64 is 16E
}
