// fetch.mjs URL: Node's fetch; prints the body.
const response = await fetch(process.argv[2]);
console.log(await response.text());
