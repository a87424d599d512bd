document.querySelectorAll("th button").forEach(function(button){
  button.addEventListener("click",function(){
    var head=button.parentNode,table=head.closest("table"),body=table.tBodies[0],column=head.cellIndex;
    var down=head.getAttribute("aria-sort")!=="descending",sign=down?-1:1;
    table.querySelectorAll("th").forEach(function(other){other.removeAttribute("aria-sort")});
    head.setAttribute("aria-sort",down?"descending":"ascending");
    var numeric=!!body.querySelector("td:nth-child("+(column+1)+")[data-key]");
    Array.from(body.rows).sort(function(a,b){
      a=a.cells[column];b=b.cells[column];
      if(!numeric)return sign*a.textContent.localeCompare(b.textContent,"en",{numeric:true});
      var p="key" in a.dataset,q="key" in b.dataset;
      return p&&q?sign*(a.dataset.key-b.dataset.key):q-p
    }).forEach(function(row){body.appendChild(row)})
  })
})
