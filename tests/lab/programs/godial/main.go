// godial HOST:PORT: net.Dial, a GET by hand, prints the answer; a failure prints its errno.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

func main() {
	connection, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		var number syscall.Errno
		if errors.As(err, &number) {
			fmt.Printf("errno=%d\n", int(number))
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer connection.Close()
	fmt.Fprintf(connection, "GET /peer HTTP/1.0\r\n\r\n")
	if _, err := io.Copy(os.Stdout, connection); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
