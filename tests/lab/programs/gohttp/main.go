// gohttp URL COUNT: so many GETs at once, each over a connection of its own; prints the bodies.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
)

func main() {
	url := os.Args[1]
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var group sync.WaitGroup
	var lock sync.Mutex
	failures := 0
	for i := 0; i < count; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			body, err := get(client, url)
			lock.Lock()
			defer lock.Unlock()
			if err != nil {
				failures++
				fmt.Fprintln(os.Stderr, err)
				return
			}
			fmt.Println(string(body))
		}()
	}
	group.Wait()
	if failures > 0 {
		os.Exit(1)
	}
}

func get(client *http.Client, url string) ([]byte, error) {
	response, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}
